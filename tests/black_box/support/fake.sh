#!/bin/sh
# Stands in for docker, docker-compose, sops and shoutrrr, by the name that it is called by. It records the call below `calls`
# and then does what the first matching line of `rules` says: NAME, PATTERN over the arguments, ACTION, separated by tabs.
# Without one it is the program itself.
name=${0##*/}
home=${0%/*}/../..
call=$home/calls/$(date +%s%N)-$$
mkdir "$call.part"
printf '%s\n' "$name" >"$call.part/name"
for argument in "$@"; do printf '%s\n' "$argument"; done >"$call.part/arguments"
env >"$call.part/environment"

action=real
while IFS='	' read -r rule_name rule_pattern rule_action; do
	[ "$rule_name" = "$name" ] || continue
	# The pattern is one on purpose.
	# shellcheck disable=SC2254
	case " $* " in $rule_pattern) action=$rule_action && break ;; esac
done <"$home/rules"

case $action in
real | hold* | flood-then-real) : >"$call.part/input" ;;
*) cat >"$call.part/input" ;;
esac
mv "$call.part" "$call"

wait_for_release() {
	until [ -e "$home/release" ]; do sleep 0.02; done
}

case $action in
real) exec "$home/real/$name" "$@" ;;
hold) wait_for_release && exec "$home/real/$name" "$@" ;;
hold-after)
	"$home/real/$name" "$@"
	code=$?
	wait_for_release
	exit "$code"
	;;
hang) exec sleep 86400 ;;
stubborn)
	trap '' TERM
	while :; do sleep 86400; done
	;;
flood) exec yes "the same line again and again, more of them than anybody wants to keep" ;;
flood-then-real)
	yes "the same line again and again, more of them than anybody wants to keep" | head -n 200000 >&2
	exec "$home/real/$name" "$@"
	;;
exit\ *)
	# The words after the code are its message.
	# shellcheck disable=SC2086
	set -- $action
	shift
	code=$1
	shift
	[ $# -eq 0 ] || echo "$*" >&2
	exit "$code"
	;;
esac
echo "unknown action $action" >&2
exit 99
