#!/usr/bin/env bash
# cppcheck over all sources. It does not know the cleanup attribute (so its leaks are not
# asked for: clang's analyzer looks for them), nor <sys/queue.h> (so it is told).
set -euo pipefail
queue=$(mktemp --suffix=.h)
trap 'rm -f "$queue"' EXIT
cat >"$queue" <<'END'
#define TAILQ_HEAD(name, type) struct name { struct type *first; struct type **last; }
#define TAILQ_ENTRY(type) struct { struct type *next; struct type **prev; }
#define TAILQ_HEAD_INITIALIZER(head) { 0, &(head).first }
#define TAILQ_FOREACH(var, head, field) for ((var) = (head)->first; (var); (var) = (var)->field.next)
#define STAILQ_HEAD(name, type) TAILQ_HEAD(name, type)
#define STAILQ_ENTRY(type) TAILQ_ENTRY(type)
#define STAILQ_HEAD_INITIALIZER(head) TAILQ_HEAD_INITIALIZER(head)
#define STAILQ_FOREACH(var, head, field) TAILQ_FOREACH(var, head, field)
#define LIST_HEAD(name, type) TAILQ_HEAD(name, type)
#define LIST_ENTRY(type) TAILQ_ENTRY(type)
#define LIST_FOREACH(var, head, field) TAILQ_FOREACH(var, head, field)
END
mapfile -t files < <(git ls-files 'core/*.c' 'proto/*.c' 'server/*.c' 'client/*.c')
cppcheck -j "$(nproc)" --quiet --error-exitcode=1 --std=c11 --enable=warning,portability --inline-suppr \
	--include="$queue" --suppress=missingIncludeSystem --suppress=missingInclude --suppress=unknownMacro \
	--suppress=memleak --suppress=resourceLeak --suppress=nullPointerRedundantCheck \
	-D_GNU_SOURCE -D__GNUC__ '-DTHIN_VERSION=""' '-DTHIN_SYSCONFDIR=""' '-DTHIN_RUNSTATEDIR=""' -I. "${files[@]}"
