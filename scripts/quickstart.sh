#!/usr/bin/env bash
# From a bare machine with Python 3.10+ to pre-trained and fine-tuned models, in minutes.
#   bash scripts/quickstart.sh                     on a synthetic data set that it draws itself
#   bash scripts/quickstart.sh --data /data/ACDC   on the real ACDC download
#   bash scripts/quickstart.sh --work FOLDER       everything goes there (default: ./nnssl_work)
# Run it again after an interruption: finished steps are skipped, a training goes on where it was.
set -euo pipefail

usage() { sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; }
fail() { echo "quickstart: $*" >&2; exit 1; }
here() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

data="" work=""
while [ $# -gt 0 ]; do
    case "$1" in
        --data) data="$(here "${2:?--data needs a folder}")"; shift 2 ;;
        --work) work="$(here "${2:?--work needs a folder}")"; shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown argument $1" ;;
    esac
done
[ -z "$data" ] || [ -d "$data" ] || fail "--data: $data is not a folder"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="${work:-$PWD/nnssl_work}"
mkdir -p "$work/logs" "$work/done"
origin="${data:-synthetic}"
found="$(cat "$work/origin" 2>/dev/null || true)"
[ -z "$found" ] || [ "$found" = "$origin" ] ||
    fail "$work holds a quickstart on other data ($found); give another folder with --work"
printf '%s\n' "$origin" >"$work/origin"

. scripts/environment.sh
nnssl_environment
echo "environment: $venv, $("$python" --version); everything else goes to $work"

# ---------------------------------------------------------------- settings
SECONDS=0
dataset=27
plans=nnUNetPlansQuick
sizes="--spacing 3 --patch 64 --batch 8 --features 12 24 48 96"
pretraining="num_epochs=15 num_iterations_per_epoch=100 num_val_iterations_per_epoch=2 save_every=1"
finetuning="num_epochs=15 num_iterations_per_epoch=40 num_val_iterations_per_epoch=4 save_every=1"
finetuning="$finetuning labels.patients=1 training.seed=0"
device="$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')"

cat >"$work/env.sh" <<END
# source this, and every command of the quickstart can be repeated by hand
export PATH=$(printf %q "$venv/bin"):\$PATH
export nnUNet_raw=$(printf %q "$work/raw")
export nnUNet_preprocessed=$(printf %q "$work/preprocessed")
export nnUNet_results=$(printf %q "$work/results")
export nnUNet_n_proc_DA=2 nnUNet_def_n_proc=2
export nnUNet_compile=0 # to compile this small network would take longer than to train it
export OMP_WAIT_POLICY=passive # else threads that wait for a busy core burn it, and training crawls
END
. "$work/env.sh"
mkdir -p "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"
# what the caller may have set for other runs
unset nnssl_overrides nnssl_pretrained_weights nnssl_configs
printf '\n$ source %q\n' "$work/env.sh"

# ---------------------------------------------------------------- how a step runs
number=0
steps=$([ -n "$data" ] && echo 12 || echo 13)
child=""

clock() { printf '%d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }

stop() {
    trap - INT TERM
    [ -z "$child" ] || { kill -TERM -- "-$child" 2>/dev/null; wait "$child" || true; }
    echo
    echo "interrupted; the same command goes on from here"
    exit 130
}
trap stop INT TERM

newest() { # the last line of a log that says something, without nnU-Net's time stamp
    tail -c 4000 "$1" | tr '\r' '\n' | grep -v '^[[:space:]]*$' | tail -n 1 |
        sed -E 's/^[0-9-]+ [0-9:.]+: //' | cut -c 1-90 || true
}

# step NAME TITLE COMMAND [SUFFIX]: echoes and runs a command line once; its output goes to a log.
# SUFFIX is added to the command (--c) and is not part of what is remembered as done.
step() {
    local name="$1" title="$2" line="$3" suffix="${4:-}" log mark begin code=0 shown=0
    number=$((number + 1))
    log="$work/logs/$(printf '%02d' "$number")_$name.log"
    mark="$work/done/$name"
    [ ! -e "$mark" ] || suffix=""
    printf '\n[%2d/%d] %s  %s\n  $ %s\n' "$number" "$steps" "$(clock)" "$title" "$line$suffix"
    if [ -e "$mark" ]; then
        [ "$(cat "$mark")" = "$line" ] ||
            fail "$work was made with another command here: $(cat "$mark") - give another --work"
        echo "  done before"
        return
    fi
    begin=$SECONDS
    set -m # an own process group, so that all of it can be ended
    bash -c "$line$suffix" >>"$log" 2>&1 </dev/null &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.5
        if [ $((SECONDS - begin)) -ge $((shown + 10)) ]; then
            shown=$((SECONDS - begin))
            printf '    %3d s  %s\n' "$shown" "$(newest "$log")"
        fi
    done
    wait "$child" || code=$?
    child=""
    if [ "$code" -ne 0 ]; then
        tail -n 25 "$log" >&2
        fail "step $name ended with $code; all of its output: $log"
    fi
    printf '%s\n' "$line" >"$mark"
    printf '  %d s, log: %s\n' $((SECONDS - begin)) "$log"
}

# training NAME TITLE TRAINER OVERRIDES: a stock nnU-Net training, continued where it was interrupted
training() {
    local folder suffix=""
    folder="$(echo "$nnUNet_results"/Dataset0${dataset}_*/"$3__${plans}__2d"/fold_0)"
    if [ -e "$folder/checkpoint_latest.pth" ] || [ -e "$folder/checkpoint_final.pth" ]; then
        suffix=" --c"
    fi
    step "$1" "$2" \
        "nnssl_overrides=\"$4\" nnUNetv2_train $dataset 2d 0 -p $plans -tr $3 -device $device" "$suffix"
}

predict() { # TRAINER OUTPUT
    step "predict_$2" "predict with the stock command: $2" "nnUNetv2_predict -i $(printf %q "$work/cases") \
-o $(printf %q "$work/predicted_$2") -d $dataset -c 2d -f 0 -p $plans -tr $1 -device $device -npp 1 -nps 1"
}

# ---------------------------------------------------------------- the road
rm -f "$work/done/register" # costs nothing, and the environment may be a new one
step register "tell nnU-Net of the trainers" "nnssl_register"
if [ -z "$data" ]; then
    data="$work/phantom"
    step phantom "draw a SYNTHETIC data set in ACDC's layout" \
        "rm -rf $(printf %q "$data") && nnssl_phantom $(printf %q "$data") --patients 30 --workers 2"
fi
step convert "convert to nnU-Net's layout, folds by patient" \
    "nnssl_convert ACDC $(printf %q "$data") -d $dataset --workers 2"
step fingerprint "fingerprint (stock nnU-Net)" "nnUNetv2_extract_fingerprint -d $dataset -np 2"
step plan "plan (stock nnU-Net)" "nnUNetv2_plan_experiment -d $dataset"
step small_plan "a small copy of the plan, for a CPU" \
    "nnssl_plan_small -d $dataset -c 2d --name $plans $sizes"
step preprocess "preprocess (stock nnU-Net)" \
    "nnUNetv2_preprocess -d $dataset -plans_name $plans -c 2d -np 2"
training pretrain "pre-train, no label is read" nnSSLPixelClusteringTrainer "$pretraining"
training finetune "fine-tune on 1 labelled patient, then validate" nnSSLFinetuneTrainer "$finetuning"
training scratch "the same from random weights" nnSSLScratchTrainer "$finetuning"
step cases "pick cases of the validation fold" "python scripts/quickstart_cases.py $(printf %q "$work")"
predict nnSSLScratchTrainer scratch
predict nnSSLFinetuneTrainer pretrained

echo
python scripts/quickstart_report.py "$work"
printf '\nfinished after %s. Repeat any command above after: source %q\n' "$(clock)" "$work/env.sh"
