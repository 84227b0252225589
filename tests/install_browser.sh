#!/bin/sh
# Chromium and its WebDriver, for tests/test_page.py: installed where that needs no question (root, with apt-get).
# Elsewhere those tests are skipped and say so; where CI is set, a missing browser is an error.
if command -v chromedriver && { command -v chromium || command -v google-chrome; }; then
    exit 0
fi >/dev/null

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing chromium and chromium-driver by apt-get (once)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium chromium-driver fonts-dejavu-core \
        >/dev/null && exit 0
fi
echo "No chromium with chromedriver: the tests of the live page will be skipped; install both to run them." >&2
[ -z "${CI:-}" ]
