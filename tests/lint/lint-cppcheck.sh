#!/usr/bin/env bash
set -euo pipefail
mapfile -t files < <(git ls-files 'core/*.c' 'proto/*.c' 'server/*.c' 'client/*.c')
cppcheck -j "$(nproc)" --quiet --error-exitcode=1 --std=c11 --enable=warning,portability \
	--inline-suppr --suppress=missingIncludeSystem --suppress=unknownMacro \
	--suppress=missingInclude --suppress=nullPointerRedundantCheck --suppress=checkersReport \
	-D_GNU_SOURCE '-DTHIN_VERSION=""' '-DTHIN_SYSCONFDIR=""' '-DTHIN_RUNSTATEDIR=""' -I. "${files[@]}"
