#!/usr/bin/env bash
# Breaks each rule of the engine in turn, in a copy, and shows that some test fails.
#
#     shmtrace-engine/mutants.sh [PATTERN]      only rules whose name matches
#
# A mutant is a file, a sed expression and a name. One that changes nothing, or that no test notices, is an error.
set -uo pipefail
cd "$(dirname "$0")/.."
pattern=${1:-.}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/engine"
cp -r shmtrace-engine/{Cargo.toml,src,tests} "$copy/engine/"
cp -r shmtrace-engine/src "$copy/whole"
cp Cargo.lock "$copy/"
# The crate alone, with what it takes from the workspace.
sed -e 's/^members = .*/members = ["engine"]/' -e '/^members = \[/,/^\]/c members = ["engine"]' -e '/^exclude/d' \
    -e '/path = /d' Cargo.toml >"$copy/Cargo.toml"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/mutants
export PROPTEST_CASES=${PROPTEST_CASES:-3000}
export CARGO_PROFILE_DEV_DEBUG=0
quick="--lib --test looks --test causes --test classes --test healthy"
slow="--test model --test interleavings"

survivors=0 killed=0
mutant() { # name, file, sed expression
    [[ $1 =~ $pattern ]] || return 0
    local file=$copy/engine/src/$2 failed
    cp "$copy/whole/$2" "$file"
    sed -i -E "$3" "$file"
    if cmp -s "$copy/whole/$2" "$file"; then
        printf '%-44s UNCHANGED: its expression matches nothing in %s\n' "$1" "$2"
        survivors=$((survivors + 1))
    elif ! (cd "$copy" && cargo check --quiet >"$copy/log" 2>&1); then
        printf '%-44s DOES NOT COMPILE\n' "$1"
        grep -m3 -A5 '^error' "$copy/log"
        survivors=$((survivors + 1))
    elif (cd "$copy" && cargo test --quiet $quick >"$copy/log" 2>&1 && cargo test --quiet $slow >"$copy/log" 2>&1); then
        printf '%-44s SURVIVES\n' "$1"
        survivors=$((survivors + 1))
    else
        failed=$(grep -m1 -oE "^    [a-z_:0-9]+$" "$copy/log" | tr -d ' ')
        printf '%-44s found by %s\n' "$1" "${failed:-a test}"
        killed=$((killed + 1))
    fi
    cp "$copy/whole/$2" "$file"
}

# The stuck state
mutant empty-ring-is-stuck          stuck.rs 's/\|\| now\.after\.is_empty\(\)//'
mutant moving-ring-is-stuck         stuck.rs 's/now\.before != now\.after \|\| //'
mutant replaced-hub-is-judged       stuck.rs 's/if !now\.hub_intact/if false/'
mutant runnable-is-asleep           stuck.rs "s/'S' \| 'Z' \| 'X'/'S' | 'R' | 'Z' | 'X'/"
mutant stopped-is-asleep            stuck.rs "s/'S' \| 'Z' \| 'X'/'S' | 'T' | 'Z' | 'X'/"
mutant disk-sleep-is-asleep         stuck.rs "s/'S' \| 'Z' \| 'X'/'S' | 'D' | 'Z' | 'X'/"
mutant ran-meanwhile-is-asleep      stuck.rs 's/ && !thread\.ran_meanwhile//'
mutant one-sleeping-thread-is-enough stuck.rs 's/!consumer\.threads\.iter\(\)\.all\(asleep\)/!consumer.threads.iter().any(asleep)/'
mutant producer-is-not-waited-for   stuck.rs 's/!gone \&\& !past_ringing/false \&\& !past_ringing/'
mutant unknown-producer-is-past     stuck.rs 's/producer\.threads\.is_empty\(\) \&\& !gone/false \&\& !gone/'
mutant dead-consumer-misses         stuck.rs 's/consumer\.proc\.is_some\(\) \&\& !consumer\.alive/false/'
mutant token-does-not-matter        stuck.rs 's/\(true, false\) => Code::MissedWakeup/(true, _) => Code::MissedWakeup/;s/\(true, true\) => /(false, true) => /'
mutant blocked-is-listening         stuck.rs 's/WaitsFor::Doorbell \| WaitsFor::OtherFds/WaitsFor::Other | WaitsFor::Doorbell | WaitsFor::OtherFds/'
mutant full-is-blocked              stuck.rs 's/_ if full =>/_ if full \&\& false =>/'
mutant run-counts-do-not-matter     stuck.rs 's/\(Some\(before\), Some\(now\)\) => before == now/(Some(_), Some(_)) => true/'
mutant two-sleeps-are-one           stuck.rs 's/all \&= match/let _ = match/;s/let mut all/let all/'

# Grace, life, looks
mutant no-grace                     engine/looks.rs 's/if steady_for < /if false \&\& steady_for < /;s/lane\.look_at = since\.plus\(grace\)/lane.look_at = since/'
mutant other-head-is-same           engine/looks.rs 's/let same = .*/let same = suspicion.code == code;/'
mutant heartbeat-hides              engine/looks.rs 's/suspicion\.restarts >= RESTARTS/false/'
mutant unseen-is-silent             engine/looks.rs 's/lane\.inconclusive_said = true/return; #[allow(unreachable_code)] {} lane.inconclusive_said = true/'
mutant unseen-is-repeated           engine/looks.rs 's/lane\.inconclusive_said = true/lane.inconclusive_said = false/'
mutant ended-is-silent              engine/looks.rs 's/let Some\(open\) = lane\.open\.take\(\) else \{ return \};/let Some(open) = lane.open.take().filter(|_| false) else { return };/'
mutant looks-are-not-spaced         engine/looks.rs 's/lane\.asked_at = Some\(now\);//'
mutant recovered-is-silent          engine/inputs.rs 's/if let Some\(open\) = lane\.open\.take\(\) \{/if let Some(open) = lane.open.take().filter(|_| false) {/'
mutant standstill-at-once           engine/inputs.rs 's/const STANDSTILL: u64 = 4_000_000/const STANDSTILL: u64 = 0/'
mutant not-counted                  engine/looks.rs 's/\*lane\.counts\.entry\(\(code, cause\)\)\.or_default\(\) \+= 1;//'
mutant masked-by-its-own-ring       engine/looks.rs 's/late \|\| !\(rung/!(rung/'
mutant masked-without-its-story     engine/looks.rs 's/let story = .*/let story = lane.history.clone();/'
mutant cause-before-its-records     engine/looks.rs 's/self\.complete_until >= suspicion\.since\.plus\(SKEW\)/true/'

# Causes
mutant history-with-a-hole          history.rs 's/first\.ring\.head <= tail/first.ring.head <= tail || true/'
mutant loss-is-no-hole              engine/inputs.rs 's/lane\.history\.incomplete_until\(to\)/let _ = to/'
mutant late-records-are-taken       engine/inputs.rs 's/if event\.at < self\.sorted_until/if false/'
mutant failed-ring-is-signal        history.rs 's/self\.result > 0 \|\| self\.result == EAGAIN/true/'
mutant eagain-is-failure            history.rs 's/self\.result > 0 \|\| self\.result == EAGAIN/self.result > 0/'
mutant thief-is-consumer            cause.rs 's/\(take\.proc == consumer\) == own/own/'
mutant strays-do-not-matter         cause.rs 's/\.find\(\|stray\| stray\.at >= published_after\)/.find(|_| false)/'
mutant vanished-tokens-are-taken    cause.rs 's/Some\(true\) if !case\.blind/Some(true) if false/'
mutant early-ring-is-none           cause.rs 's/1\.\. if !surplus\.announced =>/1.. if !surplus.announced \&\& false =>/'
mutant early-ring-in-doubt          history.rs 's/sure: least\.is_some\(\) \&\& \(alone \|\| self\.calls > MANY\)/sure: true/'
mutant order-by-clock               history.rs 's/self\.rings\.len\(\) - later\.count\(\)/{ let _ = later; self.rings.len() }/'

# Bystanders
mutant anybody-is-bystander         servers.rs 's/\.filter\(\|thread\| !names\.contains\(thread\.name\.as_str\(\)\)\)//'
mutant bystander-after-no-service   servers.rs 's/service\.times < OFTEN/false/'
mutant bystander-at-doorbell        servers.rs 's/self\.seen\.contains\(\&\(proc, thread\.tid\)\)/false/'
mutant no-bystanders                servers.rs 's/service\.times < OFTEN/true/'

# Hubs, threads, memory
mutant dead-peer-at-once            hubs.rs 's/grace: grace\.max\(LOOK\)/grace: 0/;s/looks: 2,/looks: 1,/'
mutant dead-peer-unseen             hubs.rs 's/entry\.alive == Some\(false\)/false/'
mutant dead-flag-does-not-matter    hubs.rs 's/ \&\& entry\.flags \& DEAD == 0//;s/entry\.flags \& ACTIVE != 0/true/'
mutant slots-while-somebody-works   hubs.rs 's/let asleep = seen\.all_asleep == Some\(true\);/let asleep = true;/'
mutant slots-at-once                hubs.rs 's/const SLOT_LASTS: u64 = 2_000_000_000/const SLOT_LASTS: u64 = 0/'
mutant slot-generations             hubs.rs 's/self\.orphans\.retain\(\|slot, _\| now\.contains\(slot\)\);/self.orphans.retain(|slot, _| now.iter().any(|other| other.index == slot.index));/'
mutant answers-do-not-count         hubs.rs 's/message\.channel != 0 \&\& !channels\.to_host\.contains_key\(\&message\.channel\)/true/'
mutant quiet-while-somebody-works   engine/whole.rs 's/seen\.all_asleep != Some\(true\) \|\| //'
mutant quiet-at-once                engine/whole.rs 's/\|\| seen\.at\.since\(since\) < expected//'
mutant computing-is-starving        engine/whole.rs 's/before\.cpu_ns == now\.cpu_ns/true/'
mutant starving-at-once             engine/whole.rs 's/const STARVED: u64 = 1_000_000_000/const STARVED: u64 = 0/'
mutant full-memory-is-enough        engine/whole.rs 's/full \&\& seen\.limit_hits > hits/full/'
mutant oom-kill-is-nothing          engine/whole.rs 's/if killed \|\| pressed/if pressed/'
mutant new-plugin-breaks-ring       engine/inputs.rs 's/if anew \{/if anew \&\& false {/'
mutant ring-back-is-fine            engine/inputs.rs 's/if anew \{/if true \|\| anew {/'
mutant condition-said-again         condition.rs 's/held\.said \|\| held\.seen < looks/held.seen < looks/'

echo "$killed rules broken and found, $survivors not"
[[ $survivors -eq 0 ]]
