#!/usr/bin/env bash
# Nothing in core/pool or server waits: no waiting form of a device, no sleep, no
# blocking system call outside the files that run on the helper thread or before the
# loop does.
set -euo pipefail
bad=0
forbidden='device_[a-z_]*_wait|device_wait|metadata_commit_wait|loop_run_once|\b(sleep|usleep|nanosleep|fsync|fdatasync|posix_fallocate|fallocate|poll|select|waitpid|system|popen|getaddrinfo|socket_connect_wait|socket_resolve)\b *\('
# Helper thread, or one of its own: probe, pools_store, backup_file, metaview, the writing half of auth. Before the loop: listener.
while IFS= read -r file; do
	case $file in server/probe.c | server/pools_store.c | server/backup_file.c | server/metaview.c | server/auth.c) continue ;; esac
	if grep -nE "$forbidden" "$file" /dev/null | grep -vE '^[^:]*:[0-9]*: *(/\*|\*|//)'; then
		bad=1
	fi
done < <(git ls-files 'core/pool/*.c' 'server/*.c')
[ $bad = 0 ] || echo "these calls wait; hand them to server/blocking.h or use the submit form"
exit $bad
