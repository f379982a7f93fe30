#!/usr/bin/env bash
# Packs what scripts/gpu_check.sh needs on a CUDA machine without network, in parts below 60 MiB:
# the repository, and a folder of the Python packages that nnU-Net and nnSSL need beside torch.
# (The data are made by the check itself.) Packages are fetched here, for Python 3.12 on x86-64.
#
#   bash scripts/pack_gpu_check.sh FOLDER [PACKAGE==VERSION ...]
#
# There:  mkdir site; cat FOLDER/packages.tar.xz.* | tar xJ -C site; tar xzf FOLDER/nnssl.tar.gz;
#         cd nnssl; PYTHONPATH=$PWD/../site bash scripts/gpu_check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:?usage: bash scripts/pack_gpu_check.sh FOLDER [PACKAGE==VERSION ...]}"
shift
PYTHON="${PYTHON:-python3}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
git archive --prefix=nnssl/ --format=tar.gz -o "$folder/nnssl.tar.gz" HEAD

# What images with torch have: torch, numpy, scipy, pandas, scikit-learn, scikit-image, pytest, timm
needed=(acvl-utils annotated-types batchgenerators batchgeneratorsv2 blosc2 connected-components-3d
    dynamic-network-architectures future graphviz linecache2 ndindex nibabel nnunetv2 numexpr
    pydantic SimpleITK surface-distance traceback2 typing-inspection unittest2 yacs)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mapfile -t packages < <("$PYTHON" - "$@" "${needed[@]}" <<'EOF'
import sys
from importlib.metadata import distribution

# the versions of this environment; pydantic and pydantic-core fit each other only so
named = {word.partition("==")[0]: word for word in sys.argv[1:] if "==" in word}
for name in dict.fromkeys(word.partition("==")[0] for word in sys.argv[1:]):
    print(named.get(name) or f"{name}=={distribution(name).version}")
print(f"pydantic-core=={distribution('pydantic-core').version}")
EOF
)
tags=(--python-version 3.12 --implementation cp)
for glibc in 2_28 2_27 2_24 2_17; do tags+=(--platform "manylinux_${glibc}_x86_64"); done
tags+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for package in "${packages[@]}"; do # where there is no wheel, the source is pure Python
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: "${tags[@]}" -d "$work/wheels" \
        "$package" 2>/dev/null || "$PYTHON" -m pip wheel -q --no-deps -w "$work/wheels" "$package"
done
"$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "${tags[@]}" \
    --only-binary=:all: "$work"/wheels/*.whl
printf '%s\n' "${packages[@]}" >"$folder/packages.txt"
tar cJf - -C "$work/site" . | split -b 58M - "$folder/packages.tar.xz."
ls -l "$folder"
