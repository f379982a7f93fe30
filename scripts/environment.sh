# Sourced by test.sh and quickstart.sh, from the repository's root: the Python environment.
#   NNSSL_VENV=/elsewhere/venv   another environment than .venv
#   PYTHON=python3.12            another interpreter for a new environment
#   NNUNET_VERSION=2.6.2         another nnU-Net, laid over the environment's own

# nnssl_environment [EXTRA]: makes or reuses the environment and installs nnssl[EXTRA] into it.
# Sets venv and python; installs again only when setup.py, pyproject.toml or the version changed.
nnssl_environment() {
    local extra="${1:-}" stamp wanted overlay
    venv="${NNSSL_VENV:-.venv}"
    if [ ! -x "$venv/bin/python" ]; then
        _nnssl_make_venv
    fi
    venv="$(cd "$venv" && pwd)"
    python="$venv/bin/python"
    stamp="$venv/.nnssl_installed"
    wanted="$(cat setup.py pyproject.toml nnssl/__init__.py | cksum) $PWD"
    if ! grep -qxF "$wanted${extra:+ [$extra]}" "$stamp" 2>/dev/null ||
        ! "$python" -c 'import nnssl' 2>/dev/null; then
        echo "installing nnssl${extra:+[$extra]} into $venv (the first time takes minutes)"
        "$python" -m pip install -e ".${extra:+[$extra]}"
        printf '%s\n' "$wanted" ${extra:+"$wanted [$extra]"} >"$stamp"
    fi
    if [ -n "${NNUNET_VERSION:-}" ]; then
        overlay="$venv/nnunet-$NNUNET_VERSION"
        if [ ! -d "$overlay" ]; then
            "$python" -m pip install --no-deps --target "$overlay.tmp" "nnunetv2==$NNUNET_VERSION"
            mv "$overlay.tmp" "$overlay"
        fi
        export PYTHONPATH="$overlay${PYTHONPATH:+:$PYTHONPATH}"
    fi
}

_nnssl_make_venv() {
    local interpreter="${PYTHON:-python3}"
    if ! "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "$interpreter is missing or older than Python 3.10; name another one, for example" >&2
        echo "  PYTHON=python3.12 bash $0" >&2
        return 1
    fi
    echo "making $venv with $("$interpreter" --version)"
    if ! "$interpreter" -m venv "$venv"; then
        rm -rf "$venv"
        echo "$interpreter cannot make environments (on Debian and Ubuntu: apt install python3-venv)" >&2
        return 1
    fi
}
