#!/usr/bin/env bash
# The tests that boot a kernel.
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/../run-all.sh" "$here"/test-*.sh
