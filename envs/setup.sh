#!/usr/bin/env bash
# Make or mend .venv: envs/setup.sh [GROUP ...], groups of packages in pyproject.toml.
#   PYTHON=/path/to/python   the interpreter; else the first of python3, python3.13, 3.12, 3.11
#                            that fits, python3 first: it is the one that the user has chosen
#   TORCH=cpu|cuda           the build of PyTorch; else by looking for an NVIDIA driver
#                            (an environment that is made anew because uv.lock has changed
#                            keeps its interpreter and its build of PyTorch)
#   INSTALLER=uv|pip         else uv from PATH, else uv from PyPI, else pip
set -euo pipefail
cd "$(dirname "$0")/.."
groups=(workflow "$@")
venv=.venv/bin/python
OTHER_LOCK="uv.lock has changed"
index=https://download.pytorch.org/whl/cpu
# an activated or exported .venv must not be what the new .venv is made from
PATH=${PATH//"$PWD/.venv/bin:"/}
# as pip: an institute's own certificates are in the system's store
if [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ]; then
  export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}
fi
say() { echo "$*" >&2; }
fail() { say "$*"; exit 1; }

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

version() { "$1" -c 'import platform as p; print(p.python_version())'; }

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11, 3.12 or 3.13."
    echo "$PYTHON"
    return
  fi
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 \
    "$(command -v uv >/dev/null && uv python find --no-project '>=3.11,<3.14' 2>/dev/null)"; do
    # a shim of pyenv may be there and not work
    if [ -n "$candidate" ] && fits "$candidate"; then echo "$candidate"; return; fi
  done
  fail "Python 3.11, 3.12 or 3.13 is needed, and none was found on PATH. Install one:
  Debian 12, 13, Ubuntu 24.04:  sudo apt install python3 python3-venv
  Fedora:                       sudo dnf install python3.13
  anywhere, without root:       curl -LsSf https://astral.sh/uv/install.sh | sh; uv python install 3.12
or name one: make demo PYTHON=/path/to/python3.12"
}

# Why .venv cannot be used as it is; nothing if it can
unusable() {
  if [ ! -e .venv/.folder ] || [ -e .venv/.incomplete ]; then echo "it is not complete"
  elif [ "$(<.venv/.folder)" != "$PWD" ]; then echo "it belongs to $(<.venv/.folder)"
  elif ! compgen -G '.venv/lib/python*/site-packages/pip/__init__.py' >/dev/null; then
    echo "it has no pip"
  elif ! fits "$venv"; then echo "its Python does not work any more"
  elif [ -n "${PYTHON:-}" ] && [ "$(version "$PYTHON")" != "$(version "$venv")" ]; then
    echo "it has Python $(version "$venv")"
  elif [ -n "${TORCH:-}" ] && [ "$TORCH" != "$(<.venv/.torch)" ]; then
    echo "it has PyTorch for: $(<.venv/.torch)"
  elif [ "$(<.venv/.lock)" != "$lock" ]; then echo "$OTHER_LOCK"
  fi
}

make_venv() {
  local python
  python=$(find_python)
  say "Python $(version "$python") ($("$python" -c 'import sys; print(sys.executable)'))"
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv .venv
  elif command -v uv >/dev/null; then
    uv venv --quiet --seed --no-project --python "$python" .venv
  else
    fail "This Python cannot make environments: sudo apt install python$("$python" -c \
      'import sys; print("%d.%d" % sys.version_info[:2])')-venv   (or install uv)"
  fi
  touch .venv/.incomplete
  echo "$PWD" >.venv/.folder
  echo "$lock" >.venv/.lock
}

# Requirements with hashes of the groups, from uv.lock; further options of uv export
locked() {
  local group options=()
  for group in "${groups[@]}"; do options+=(--group "$group"); done
  "$uv" export --quiet --frozen --no-emit-project --no-annotate --no-header --python "$venv" \
    --no-default-groups "${options[@]}" "$@"
}

find_uv() {
  uv=
  [ "${INSTALLER:-uv}" = uv ] || return 0
  for uv in "$(command -v uv || true)" .venv/bin/uv; do
    if [ -x "$uv" ] && locked >/dev/null 2>&1; then return; fi
  done
  uv=.venv/bin/uv
  sed -n '/^uv==/,/[^\\]$/p' envs/requirements.txt >.venv/uv.txt
  if "$venv" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    -r .venv/uv.txt; then return; fi
  say "uv cannot be installed; going on with pip."
  uv=
}

install() {
  # compiled here: where PYTHONDONTWRITEBYTECODE is set each job would compile its imports anew
  if [ -n "$uv" ]; then "$uv" pip install --quiet --compile-bytecode --python "$venv" --no-deps "$@"
  else "$venv" -m pip install --quiet --disable-pip-version-check --no-deps "$@"; fi
}

# Sets torch (cpu or cuda) and why
choose_torch() {
  torch=${TORCH:-} why="as chosen"
  case $torch in
    cpu | cuda) ;;
    "")
      if [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; then
        torch=cuda why="there is an NVIDIA driver; TORCH=cpu overrides"
      else
        torch=cpu why="no NVIDIA driver was found; TORCH=cuda overrides"
      fi ;;
    *) fail "TORCH=$torch: cpu or cuda" ;;
  esac
}

# PyPI has builds for CUDA only, so that the lock has; builds for CPUs are in PyTorch's own index
install_cpu_torch() {
  local pin
  pin=$(grep -o 'torch==[0-9.]*' pyproject.toml | head -n 1)
  if "$venv" -c "import urllib.request as r; r.urlopen('$index/torch/', timeout=5)" 2>/dev/null; then
    install "$pin" --index-url "$index"
    return
  fi
  say "$index does not answer; looking where pip is told to look."
  if "$venv" -m pip install --dry-run --quiet --no-deps --report - "$pin" 2>/dev/null \
    | grep -q '"version": "[0-9.]*+cpu"'; then
    "$venv" -m pip install --quiet --disable-pip-version-check --no-deps "$pin"
    return
  fi
  say "No build for CPUs there either: taking the one for CUDA (3 GB), whose libraries stay unused."
  torch=cuda
}

mkdir -p .uad
exec 8>.uad/setup.lock
! command -v flock >/dev/null || flock 8
lock=$(sha256sum <uv.lock)
why=$([ ! -e .venv ] || unusable)
if [ -n "$why" ]; then
  if [ "$why" = "$OTHER_LOCK" ]; then
    PYTHON=${PYTHON:-$("$venv" -c 'import sys; print(sys._base_executable)')}
    TORCH=${TORCH:-$(<.venv/.torch)}
  fi
  find_python >/dev/null
  say "Making .venv anew: $why."
  rm -rf .venv
fi
todo=
for group in "${groups[@]}"; do [ -e ".venv/.group-$group" ] || todo+=" $group"; done
[ -n "$todo" ] || exit 0

if [ ! -e .venv ]; then
  ln -sfn . .uad/link 2>/dev/null || fail "$PWD: this file system has no symbolic links, which a \
Python environment needs; move this folder to another one."
  rm .uad/link
  make_venv
fi
touch .venv/.incomplete
find_uv
say "Installing into .venv:$todo (once; a minute or two) ..."
if [ -e .venv/.torch ]; then torch=$(<.venv/.torch)
else
  choose_torch
  say "PyTorch for: $torch ($why)"
  asked=$torch # what is taken where there is no build for CPUs is another matter
  [ "$torch" = cuda ] || install_cpu_torch
fi
if [ -z "$uv" ]; then # pip has one list with everything
  [ "$torch" = cpu ] || "$venv" -m pip install --quiet "$(grep -o 'torch==[0-9.]*' pyproject.toml)"
  install --require-hashes -r envs/requirements.txt
elif [ "$torch" = cpu ]; then
  locked --prune torch | install --require-hashes -r -
else
  locked | install --require-hashes -r -
fi
install --no-build-isolation -e .
echo "${asked:-$torch}" >.venv/.torch
for group in "${groups[@]}"; do touch ".venv/.group-$group"; done
rm .venv/.incomplete
say "The environment is ready after $SECONDS s."
