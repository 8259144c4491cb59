#!/usr/bin/env bash
# drive.sh - the cases of boot_test.sh, run as a service of the machine that it boots. /result/report has a line for
# each check; /result/passed appears when all held.
set -u
exec >/result/report 2>&1
trap 'journalctl --no-pager -o short-monotonic >/result/journal 2>&1' EXIT
failed=0
out=/srv/out
workers="cosyfarm-llm@0 cosyfarm-flow@0 cosyfarm-hift@0"
units="cosyfarm-orchestrator cosyfarm-keeper $workers"

ok() { # what condition...
    local what=$1
    shift
    if "$@"; then
        echo "ok   $what"
    else
        echo "FAIL $what"
        failed=1
    fi
}

value() { systemctl show -P "$2" "$1"; } # unit property
pid() { value "$1" MainPID; }
pids() { for u in "$@"; do echo "$u=$(pid "$u")"; done; }
as_user() { setpriv --reuid=cosyfarm --regid=cosyfarm --clear-groups "$@"; }

# Waits until a condition holds; false after so many seconds.
within() { # seconds condition...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS <= end)) || return 1
        read -r -t 0.05 <> <(:) || true
    done
}
is() { [[ $(value "$1" "$2") == "$3" ]]; }                     # unit property wanted
is_new() { [[ $(pid "$1") != "$2" && $(pid "$1") != 0 ]]; }    # unit old-pid
same() { [[ $1 == "$2" ]] || { printf '     %s\n     %s\n' "${1//$'\n'/ }" "${2//$'\n'/ }"; return 1; }; }
members() { as_user cosyfarm status --json 2>/dev/null; }
warned() { [[ -n $(journalctl -q --no-pager -t orchestrator -p warning -n 1) ]]; }
said() { journalctl -q --no-pager -u "$1" | grep -qF "$2"; }            # unit words
serving() { [[ $(members | grep -o '"state": *"serving"' | wc -l) == "$1" ]]; } # members, the keeper too
say() { as_user cosyfarm say -q --seed 7 -o "$out/$1" "It rained." 2>>/result/say; }
in_flow() { members | grep -qE '"flow": *\{[^}]*"running": *[1-9]'; }

# ---- the units, as files ----

systemd-analyze verify --man=no /usr/local/lib/systemd/system/cosyfarm* >/result/verify 2>&1
ok "systemd-analyze verify succeeds" [ $? = 0 ]
ok "systemd-analyze verify prints nothing" same "" "$(cat /result/verify)"
for u in orchestrator keeper drain llm@0 flow@0 hift@0; do
    systemd-analyze security --no-pager "cosyfarm-$u.service" >"/result/security-$u"
done

# ---- boot ----

systemd-sysusers && systemd-tmpfiles --create /usr/local/lib/tmpfiles.d/cosyfarm.conf
ok "user and run directory" same "cosyfarm cosyfarm 700" "$(stat -c '%U %G %a' /run/cosyfarm)"
chown cosyfarm: $out
timeout 15 systemctl start cosyfarm.target
ok "the target starts" [ $? = 0 ]
for u in $units cosyfarm-drain; do ok "$u is active" is "$u" ActiveState active; done
((failed == 0)) || exit 1
ok "a worker says what it does" is cosyfarm-llm@0 StatusText serving
ok "a row is spoken" say first.wav
as_user timeout 5 cosyfarm say -q -o /srv/shut.wav "It rained." 2>/result/shut
ok "say into a folder that is not opened is refused at once" [ $? = 75 ]
ok "with the reason" grep -q "/srv: no file can be put into this folder" /result/shut
ok "its file is there" test -s $out/first.wav
ok "the journal is where the configuration says" test -e /var/lib/cosyfarm/journal

# ---- a worker that always dies, beside the others ----

mkdir -p /run/systemd/system/cosyfarm-llm@1.service.d
printf '[Service]\nEnvironment=COSYFARM_FAULT=mem.alloc#20=kill\n' >/run/systemd/system/cosyfarm-llm@1.service.d/fault.conf
# And one, further down, whose watchdog bites early. One reload: it forgets how often a unit has started.
mkdir -p /run/systemd/system/cosyfarm-hift@0.service.d
printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/cosyfarm-hift@0.service.d/short.conf
systemctl daemon-reload
loop_began=${EPOCHREALTIME/./}
systemctl start --no-block cosyfarm-llm@1

# ---- one worker killed, with a row inside ----

before=$(pids cosyfarm-orchestrator cosyfarm-keeper cosyfarm-llm@0 cosyfarm-hift@0)
flow=$(pid cosyfarm-flow@0)
systemctl kill --kill-whom=main -s STOP cosyfarm-flow@0
say second.wav &
said=$!
ok "the row reaches the stopped worker" within 10 in_flow
systemctl kill --kill-whom=main -s KILL cosyfarm-flow@0
ok "the dead worker starts again" within 10 is_new cosyfarm-flow@0 "$flow"
wait $said
ok "the row completes" [ $? = 0 ]
ok "with the same bytes" cmp $out/first.wav $out/second.wav
ok "nobody else was started again" same "$before" \
    "$(pids cosyfarm-orchestrator cosyfarm-keeper cosyfarm-llm@0 cosyfarm-hift@0)"
ok "once" is cosyfarm-flow@0 NRestarts 1

# ---- the orchestrator killed ----

before=$(pids cosyfarm-keeper $workers)
old=$(pid cosyfarm-orchestrator)
systemctl kill --kill-whom=main -s KILL cosyfarm-orchestrator
ok "the orchestrator starts again" within 10 is_new cosyfarm-orchestrator "$old"
ok "its workers are back" within 10 serving 4
ok "a row is spoken" say third.wav
ok "with the same bytes" cmp $out/first.wav $out/third.wav
ok "the workers are the same processes" same "$before" "$(pids cosyfarm-keeper $workers)"

# ---- exit 75 is started again: a worker that is asked to ----

flow=$(pid cosyfarm-flow@0)
restarts=$(value cosyfarm-flow@0 NRestarts)
as_user cosyfarm restart flow >/dev/null
ok "cosyfarm restart gives a fresh process" within 10 is_new cosyfarm-flow@0 "$flow"
ok "by exit code 75" is cosyfarm-flow@0 NRestarts $((restarts + 1))

# ---- a worker whose loop hangs ----

systemctl restart cosyfarm-hift@0
hift=$(pid cosyfarm-hift@0)
systemctl kill --kill-whom=main -s STOP cosyfarm-hift@0
ok "the watchdog ends a worker that hangs" within 10 is_new cosyfarm-hift@0 "$hift"
ok "its workers are back" within 10 serving 4

# ---- the loop has an end ----

ok "the back-off ends the crash loop" within 20 is cosyfarm-llm@1 ActiveState failed
loop_us=$((${EPOCHREALTIME/./} - loop_began))
ok "after the pauses between ten starts" [ $loop_us -ge 4500000 ]
ok "which systemd says" said cosyfarm-llm@1 "Start request repeated too quickly"

# ---- exit 78 is not ----

before=$(pids cosyfarm-keeper $workers)
cp /etc/cosyfarm/cosyfarm.json /tmp/good.json
sed -i 's|"threads"|"treads"|' /etc/cosyfarm/cosyfarm.json
systemctl kill --kill-whom=main -s KILL cosyfarm-orchestrator
ok "a bad configuration fails the unit" within 10 is cosyfarm-orchestrator ActiveState failed
ok "with 78" is cosyfarm-orchestrator ExecMainStatus 78
restarts=$(value cosyfarm-orchestrator NRestarts)
cp /tmp/good.json /etc/cosyfarm/cosyfarm.json
ok "it was started once, and not again" is cosyfarm-orchestrator Result exit-code
systemctl start cosyfarm-orchestrator
ok "mended, the same workers are back" within 10 serving 4
ok "the workers are the same processes" same "$before" "$(pids cosyfarm-keeper $workers)"

# ---- the orchestrator stopped by its operator, with a row inside ----

before=$(pids cosyfarm-keeper $workers)
systemctl kill --kill-whom=main -s STOP cosyfarm-flow@0
say aside.wav &
said=$!
ok "a row is in work" within 10 in_flow
systemctl stop cosyfarm-orchestrator
ok "stopping the orchestrator alone succeeds" is cosyfarm-orchestrator Result success
ok "it steps aside, it does not drain" said cosyfarm-orchestrator "ev=orch.steps_aside"
systemctl kill --kill-whom=main -s CONT cosyfarm-flow@0
ok "the rest go on" same "$before" "$(pids cosyfarm-keeper $workers)"
systemctl start cosyfarm-orchestrator
wait $said
ok "the next one finishes the row" [ $? = 0 ]
ok "with the same bytes" cmp $out/first.wav $out/aside.wav
systemctl restart cosyfarm-orchestrator
ok "restarted, the same workers are back" within 10 serving 4
ok "the workers are the same processes" same "$before" "$(pids cosyfarm-keeper $workers)"

# ---- cosyfarm down, without time for its row: nobody waits for an orchestrator that does not come, none is started ----

restarts=$(value cosyfarm-keeper NRestarts)
systemctl kill --kill-whom=main -s STOP cosyfarm-flow@0
say left.wav &
said=$!
ok "a row is in work" within 10 in_flow
as_user cosyfarm down --now >/dev/null 2>&1
ok "cosyfarm down --now ends the farm, and a row is left" [ $? = 75 ]
systemctl kill --kill-whom=main -s CONT cosyfarm-flow@0
for u in $units; do ok "$u has ended for good" within 10 is "$u" ActiveState inactive; done
ok "the keeper is not started again" is cosyfarm-keeper NRestarts "$restarts"
timeout 15 systemctl start cosyfarm.target
ok "the target starts again" within 10 serving 4
wait $said
ok "and does the row" [ $? = 0 ]
ok "with the same bytes" cmp $out/first.wav $out/left.wav

# ---- stop: rows in work are finished first ----

systemctl kill --kill-whom=main -s STOP cosyfarm-flow@0
say last.wav &
said=$!
ok "a row is in work" within 10 in_flow
systemctl stop --no-block cosyfarm.target
ok "the drain begins" within 10 is cosyfarm-drain ActiveState deactivating
systemctl kill --kill-whom=main -s CONT cosyfarm-flow@0
wait $said
ok "stopping the target lets the row finish" [ $? = 0 ]
ok "with the same bytes" cmp $out/first.wav $out/last.wav
for u in $units; do ok "$u has stopped in order" within 10 is "$u" ActiveState inactive; done

ok "log lines have priorities" warned
[[ $failed == 0 ]] && touch /result/passed
exit $failed
