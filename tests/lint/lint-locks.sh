#!/usr/bin/env bash
# The bound of block locks held at once, derived from the call graph, is the one that
# block_manager.h states; no function of the metadata rooms takes more than locks.txt says.
set -euo pipefail
mapfile -t files < <(git ls-files 'core/base/*.[ch]' 'core/device/*.[ch]' 'core/ondisk/*.[ch]' 'core/persist/*.[ch]' \
	'core/metadata/*.[ch]' 'core/pool/*.[ch]' 'core/offline/*.[ch]')
exec python3 tests/lint/lock_bound.py "$@" tests/lint/locks.txt "${files[@]}"
