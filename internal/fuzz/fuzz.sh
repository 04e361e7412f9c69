#!/bin/sh
# Runs every fuzz target of this module, one after the other: fuzz.sh [TIME [NAME]]. TIME is that of each target, 1m by
# default; NAME is a regular expression for targets. What a target finds is written to its testdata/fuzz: commit it with the fix.
set -eu

time=${1:-1m} name=${2:-Fuzz}
cd "$(dirname "$0")/../.."
failed=
for package in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u); do
	targets=$(go test -list "$name" "$package" | grep '^Fuzz' || true)
	for target in $targets; do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" || failed="$failed $package:$target"
	done
done
if [ -n "$failed" ]; then
	echo "failed:$failed" >&2
	exit 1
fi
