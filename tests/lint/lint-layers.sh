#!/usr/bin/env bash
# A room may include only what stands below it; includes are spelled from the root;
# *_private.h stays in its folder. The table is the one in ARCHITECTURE.md.
set -euo pipefail
below() {
	case $1 in
	core/base) echo ;;
	core/device | core/ondisk) echo core/base ;;
	core/persist) echo core/base core/device core/ondisk ;;
	core/metadata) echo core/base core/device core/ondisk core/persist ;;
	core/pool) echo core/base core/device core/ondisk core/persist core/metadata ;;
	core/offline) echo core/base core/device core/ondisk core/persist core/metadata ;;
	core/tools) echo core/base core/device core/ondisk core/metadata core/offline ;;
	proto) echo core/base ;;
	proto/nbd) echo core/base ;;
	server) echo core/base core/device core/ondisk core/pool core/offline proto proto/nbd ;;
	client/lib) echo core/base proto ;;
	client/cli) echo core/base proto client/lib ;;
	client/nbd) echo core/base proto proto/nbd client/lib ;;
	*) echo "?" ;;
	esac
}
bad=0
while IFS= read -r file; do
	room=$(dirname "$file")
	may=" $room $(below "$room") "
	case $may in *"?"*)
		echo "$file: a folder that is not in the table of rooms"
		bad=1
		continue
		;;
	esac
	while IFS=: read -r line include; do
		target=$(dirname "$include")
		if [ "$target" = . ]; then
			echo "$file:$line: include \"$include\" is not spelled from the root"
			bad=1
			continue
		fi
		case $may in
		*" $target "*) ;;
		*)
			echo "$file:$line: $room looks up to $include"
			bad=1
			;;
		esac
		case $include in *_private.h)
			[ "$target" = "$room" ] || {
				echo "$file:$line: $include is private to $target"
				bad=1
			}
			;;
		esac
	done < <(grep -n '^#include "' "$file" | sed 's/^\([0-9]*\):#include "\([^"]*\)".*/\1:\2/')
done < <(git ls-files 'core/*.[ch]' 'proto/*.[ch]' 'server/*.[ch]' 'client/*.[ch]')
# The engine knows no event loop, no wire, no TLS; the wire knows no event loop.
if grep -nE '#include <(event2|openssl|protobuf-c|systemd)/' $(git ls-files 'core/*.[ch]'); then
	echo "core/ includes what stands above it"
	bad=1
fi
if grep -nE '#include <event2/' $(git ls-files 'proto/*.[ch]' 'client/lib/*.[ch]'); then
	echo "proto/ and client/lib know no event loop"
	bad=1
fi
exit $bad
