#!/bin/sh
# Shows that the simulation finds faults: runs it over a core that has one bug on purpose
# after the other, each must be found within SEEDS_MAX seeds; without a bug nothing is
# found. seeded-bugs.sh PROGRAM [NAME...]
# RULES: test programs over the same core, of the rules for blocks that were freed and for
# what an opening stands on. Each of RULE_BUGS breaks one of the rules, and must make one of
# them fail. ONLY_RULES: the simulation is not asked, since it has no pinned views, or comes
# to such a case once in ten thousand seeds.
RULE_BUGS="EARLY_REUSE REUSE_IN_CUT REUSE_WHILE_READ REUSE_IN_PASSDOWN PASSDOWN_EARLY REUSE_PINNED NOT_SETTLED"
ONLY_RULES="REUSE_PINNED NOT_SETTLED"
# DAMAGE: the program in which metadata goes bad; it is the one to find DAMAGE_BUGS.
DAMAGE_BUGS="CHECKSUM_IGNORED DAMAGED_GIVEN_OUT DAMAGE_UNMARKED"
SEEDS_MAX=${SEEDS_MAX:-1500}
program=$1
shift
table=$(mktemp)
out=$(mktemp)
trap 'rm -f "$table" "$out"' EXIT
"$program" --list-seeded-bugs >"$table" || exit 1
missed=0 found=0

if ! SEEDS=40 TWICE=0 CRASHES=1000000 "$program" >"$out" 2>&1; then
	echo "without a bug the simulation fails:"
	cat "$out"
	exit 1
fi
if [ -n "${DAMAGE:-}" ] && ! SEEDS=40 "$DAMAGE" >"$out" 2>&1; then
	echo "without a bug the simulation of damage fails:"
	cat "$out"
	exit 1
fi
for t in ${RULES:-}; do
	if ! timeout 300 "$t" >"$out" 2>&1; then
		echo "without a bug a test of the rules fails:"
		cat "$out"
		exit 1
	fi
done
printf '%-18s %5s  %s\n' "bug" "seeds" "found by"
while read -r name words; do
	if [ $# -gt 0 ]; then
		case " $* " in *" $name "*) ;; *) continue ;; esac
	fi
	by=
	case " $RULE_BUGS " in
	*" $name "*)
		for t in ${RULES:-}; do
			THIN_SEEDED_BUG=$name timeout 300 "$t" >"$out" 2>&1 ||
				by="$by$(sed -n 's/^.*:[EF]:[^:]*:\([^:]*\):.*/\1/p' "$out" | tr '\n' ' ')"
		done
		if [ -n "${RULES:-}" ]; then
			if [ -z "$by" ]; then
				missed=$((missed + 1))
				echo "FAILED $name: NO TEST of the rule fails: $words"
			else
				echo "$name: $by" | cut -c1-110
			fi
		fi
		;;
	esac
	case " $ONLY_RULES " in
	*" $name "*)
		[ -n "$by" ] && found=$((found + 1))
		continue
		;;
	esac
	by=$program
	case " $DAMAGE_BUGS " in *" $name "*) by=${DAMAGE:-$program} ;; esac
	rc=0
	THIN_SEEDED_BUG=$name SEEDS=$SEEDS_MAX TWICE=0 CRASHES=1000000 DAMAGES=1000000 \
		timeout 300 "$by" >"$out" 2>&1 || rc=$?
	if [ $rc = 0 ] || [ $rc = 124 ]; then # out of time is not found
		missed=$((missed + 1))
		echo "FAILED $name: NOT FOUND in $SEEDS_MAX seeds, exit $rc: $words"
	else
		found=$((found + 1))
		seed=$(sed -n 's/^SEED=\([0-9]*\):.*/\1/p' "$out" | tail -n 1)
		printf '%-18s %5s  %s\n' "$name" "${seed:-?}" \
			"$(grep -v 'stopped itself' "$out" | tail -n 1 | sed 's/^SEED=[0-9]*: //' | cut -c1-90)"
	fi
done <"$table"
echo "$found found, $missed not; at most $SEEDS_MAX seeds for each"
[ "$missed" = 0 ] && [ "$found" -gt 0 ]
