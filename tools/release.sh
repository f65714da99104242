#!/bin/bash
# Make the models of a bundled pair from crystals: compute the energies of crystals that have none;
# train the prior, on all crystals and then on those near the hull; sample pairs; train the refiner
# and choose its slope by validation; export both in bfloat16; measure them and write the model cards. The script has been run as a whole with trainings of some
# steps only: the bundled pairs come from a series of shorter trainings, listed in their cards.
#
#   tools/release.sh                  # hours on two cores; after a kill the same command continues
#   PAIR=sites tools/release.sh       # the pair bundled:sites instead of bundled:wyckoff
#   DRY=1 tools/release.sh            # only print the commands
#
# Every stage has its own folder in $RUNS; finished stages are skipped, unfinished ones continue.
# Settings, as environment variables:
#   PAIR      wyckoff or sites: sets the recipes and where the models go
#   DATA      folder with train.parquet, val.parquet and hull_entries.parquet of MP-20 in mp20/,
#             train.parquet in mp_extra/, and the energies of the elements in mp_reference/
#   RUNS      folder for the runs
#   BUNDLE    folder for the two model folders
#   DEVICE    cpu, cuda or auto
#   SAMPLES, TEMPERATURE   pairs per target, and temperature at which the prior draws them
#   TARGETS   validation targets of the figures; half as many are used to choose the slope
#   WORKERS   processes
#   LIMIT     arguments of `flowllm pair`, such as "--limit 64"
#   PRIOR, LAST, REFINER   overrides of the recipes, such as "training.epochs=1"; LAST is for the last
#             training of the prior, on crystals near the hull (sites: on MP-20 alone)
set -euo pipefail
cd "$(dirname "$0")/.."

DATA=${DATA:-../shared/data}
PAIR=${PAIR:-wyckoff}
case $PAIR in
    wyckoff)
        PRIOR_RECIPE=llm/wyckoff REFINER_RECIPE=rfm/wyckoff
        LAST=${LAST:-tasks.near_hull=null training.epochs=2 training.learning_rate=5e-4 training.warmup_steps=50}
        ;;
    sites)
        PRIOR_RECIPE=llm/release REFINER_RECIPE=rfm/release
        LAST=${LAST:-training.epochs=8 training.learning_rate=1e-3 training.warmup_steps=50}
        ;;
    *)
        echo "error: PAIR is $PAIR; set it to wyckoff or sites" >&2
        exit 2
        ;;
esac
RUNS=${RUNS:-runs/release-$PAIR}
BUNDLE=${BUNDLE:-flowllm/hub/bundled/$PAIR}
DEVICE=${DEVICE:-auto}
SAMPLES=${SAMPLES:-2}
TEMPERATURE=${TEMPERATURE:-0.7}
TARGETS=${TARGETS:-1000}
WORKERS=${WORKERS:-2}
read -ra LIMIT <<<"${LIMIT:-}"
read -ra PRIOR <<<"${PRIOR:-}"
read -ra LAST <<<"$LAST"
read -ra REFINER <<<"${REFINER:-}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

run() {
    printf '%q ' "$@"
    echo
    [[ -n ${DRY:-} ]] || "$@"
}

# The crystals besides MP-20. For the layout wyckoff they get energies above the hull, so that the
# prior can tell stable from unstable ones; those near the hull go into its last training as well.
EXTRA=("$DATA/mp_extra/train.parquet")
NEAR=()
if [[ $PAIR == wyckoff ]]; then
    EXTRA=("$RUNS/mp_extra.parquet")
    NEAR=(--data "$RUNS/mp_extra_near_hull.parquet")
    [[ -e ${EXTRA[0]} ]] ||
        run python tools/hull_energies.py "$DATA/mp_extra/train.parquet" \
            --hull "$DATA/mp20/hull_entries.parquet" \
            --references "$DATA/mp_reference/mp_elemental_ref_energies_per_atom.json" \
            --check "$DATA/mp20/train.parquet" \
            --out "${EXTRA[0]}" --near-hull "$RUNS/mp_extra_near_hull.parquet"
fi

# --resume continues a training, and starts it if there is no checkpoint yet.
run flowllm train-llm --config "$PRIOR_RECIPE" --data "$DATA/mp20/train.parquet" \
    --data "${EXTRA[0]}" --validation "$DATA/mp20/val.parquet" --skip-invalid \
    --out "$RUNS/prior-of-all" --device "$DEVICE" --resume "${PRIOR[@]}"

run flowllm train-llm --config "$PRIOR_RECIPE" --data "$DATA/mp20/train.parquet" "${NEAR[@]}" \
    --validation "$DATA/mp20/val.parquet" --skip-invalid --out "$RUNS/prior" --device "$DEVICE" \
    --resume model.architecture=null "model.name=$RUNS/prior-of-all/model" "${LAST[@]}"

# Samples for training targets match as often as those for validation targets (docs/results.md).
run flowllm pair "$DATA/mp20/train.parquet" --prior "$RUNS/prior/model" \
    --samples-per-target "$SAMPLES" --temperature "$TEMPERATURE" --skip-invalid \
    --out "$RUNS/pairs" --workers "$WORKERS" --device "$DEVICE" "${LIMIT[@]}"
run flowllm pair "$DATA/mp20/val.parquet" --prior "$RUNS/prior/model" \
    --temperature "$TEMPERATURE" --skip-invalid \
    --out "$RUNS/pairs-validation" --workers "$WORKERS" --device "$DEVICE" "${LIMIT[@]}"

run flowllm train-rfm --config "$REFINER_RECIPE" --pairs "$RUNS/pairs" \
    --validation "$RUNS/pairs-validation" --out "$RUNS/refiner" \
    --device "$DEVICE" --resume "${REFINER[@]}"

# The slope is chosen on another random draw of targets than the figures of the card; some targets are
# in both.
[[ -e $RUNS/choice.json ]] ||
    run python benchmarks/match_rate.py "$DATA/mp20/val.parquet" -n $((TARGETS / 2)) --seed 1 \
        --prior "$RUNS/prior/model" --refiner "$RUNS/refiner/model" \
        --slope 0 --slope 1 --slope 2 --slope 5 --slope 10 --out "$RUNS/choice.json"
run python tools/bundle.py weights --prior "$RUNS/prior/model" --refiner "$RUNS/refiner/model" \
    --choice "$RUNS/choice.json" --out "$BUNDLE"

[[ -e $RUNS/figures.json ]] ||
    run python benchmarks/match_rate.py "$DATA/mp20/val.parquet" -n "$TARGETS" \
        --prior "$BUNDLE/prior" --refiner "$BUNDLE/refiner" --out "$RUNS/figures.json"
run flowllm sample -n "$TARGETS" --prior "$BUNDLE/prior" --refiner "$BUNDLE/refiner" \
    --out "$RUNS/samples" --workers "$WORKERS" --device "$DEVICE" || [[ $? == 1 ]] # some failed
run flowllm evaluate "$RUNS/samples" --train "$DATA/mp20/train.parquet" \
    --out "$RUNS/evaluation" --workers "$WORKERS"
run python tools/bundle.py cards "$RUNS/figures.json" "$RUNS/evaluation/metrics.json" \
    --prior-recipe "$RUNS/prior-of-all" --prior-recipe "$RUNS/prior" \
    --refiner-recipe "$RUNS/refiner" --out "$BUNDLE"
