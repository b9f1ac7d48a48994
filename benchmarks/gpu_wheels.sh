#!/usr/bin/env bash
# Fetch what benchmarks/gpu_check.py needs beyond PyTorch and torchvision, for a machine that reaches no index.
#   bash benchmarks/gpu_wheels.sh FOLDER [--with-opencv] [--python 3.11]
# Without OpenCV it is some 5 MB; give gpu_check.py the images with --inputs then. OpenCV (60 MB) is for its data part.
set -euo pipefail
folder=${1:?usage: gpu_wheels.sh FOLDER [--with-opencv] [--python VERSION]}; shift
packages=(mmengine addict yapf rich termcolor platformdirs markdown-it-py mdurl pygments pyyaml
          terminaltables pycocotools pytest pluggy iniconfig packaging)
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
while [ $# -gt 0 ]; do
  case $1 in
    --with-opencv) packages+=(opencv-python-headless) ;;
    --python) version=${2:?--python needs a version}; shift ;;
    *) echo "gpu_wheels.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$folder"
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --python-version "$version" --dest "$folder" "${packages[@]}"
echo "$folder: $(du -sm "$folder" | cut -f1) MB; there: pip install --no-index --no-deps $folder/*"
