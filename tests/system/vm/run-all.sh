#!/usr/bin/env bash
# The tests that boot a kernel.
here=$(cd "$(dirname "$0")" && pwd)
TEST_TIMEOUT=${TEST_TIMEOUT:-1500} exec "$here/../run-all.sh" "$here"/test-*.sh
