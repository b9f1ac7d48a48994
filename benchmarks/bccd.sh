#!/usr/bin/env bash
# Faster R-CNN R18-FPN from scratch on the blood cells of ../shared/data/bccd (VOC format), then its test.
#
#   benchmarks/bccd.sh [DATA [WORK_DIR]]      default: ../shared/data/bccd work_dirs/bccd
#
# Minutes on a CPU; ends with status 1 when mAP at IoU 0.5 on the val split stays below 0.75.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data/bccd}
work=${2:-work_dirs/bccd}
python=${PYTHON:-python}
config=configs/pascal_voc/faster_rcnn_r18_fpn_bccd.py

roots=(data.train.dataset.data_root="$data" data.val.data_root="$data" data.test.data_root="$data")
"$python" tools/train.py $config --work-dir "$work" --seed 0 --cfg-options "${roots[@]}"
"$python" tools/test.py $config "$work/latest.pth" --eval mAP recall --out "$work/results.pkl" --work-dir "$work" \
    --show-dir "$work/show" --show-score-thr 0.5 --cfg-options "${roots[@]}" | tee "$work/test.txt"
"$python" - "$work/test.txt" <<'PYTHON'
import re
import sys

found = re.search(r'\bmAP: ([0-9.]+)', open(sys.argv[1]).read())
value = float(found.group(1))
print(f'mAP at IoU 0.5 on the val split: {value:.4f}, wanted: 0.75')
sys.exit(value < 0.75)
PYTHON
