#!/usr/bin/env bash
# Data on a node's own disk, once per node whatever the number of an array's tasks on it. Called by slurm/common.sh:
#   stage.sh copy SOURCE TARGET     copy a folder or a file
#   stage.sh unpack SOURCE TARGET   the same, but a tar file becomes the folder that it holds, TARGET without .tar...
#   stage.sh remove TARGET          this job no longer needs it; the last one removes it
# TARGET's folder, flowers-USER-JOB, is the job's own and goes as a whole.
set -euo pipefail
fail() { printf 'flowers: error: %s: %s\n' "$(hostname -s)" "$*" >&2; exit 1; }

action=$1 target=${!#}
top=$(dirname "$target")
disk=$(dirname "$top")

remove() {
  rm -f "$top/users/$SLURM_JOB_ID"
  if rmdir "$top/users" 2> /dev/null; then rm -rf "$top"; fi
}

# Folders of jobs that were killed before they could clean up.
remove_orphans() {
  local folder alive
  alive=$(squeue --noheader --array --format=%F) || return 0
  for folder in "$disk/flowers-$(id -u)"-*; do
    if [[ -d $folder && $folder != "$top" ]] && ! grep -qx "${folder##*-}" <<< "$alive"; then rm -rf "$folder"; fi
  done
}

copy() { cp -R --dereference --preserve=timestamps -T "$1" "$top/incomplete" && mv -T "$top/incomplete" "$target"; }

unpack() {
  local inside=$top/incomplete content
  mkdir "$inside" && tar -C "$inside" -xf "$1" || return
  content=$(ls -A "$inside")
  # A tar of one folder: its inside is the data, unless that folder is a split.
  if [[ $content != *$'\n'* && -d $inside/$content && $content != train ]]; then inside=$inside/$content; fi
  mv -T "$inside" "${target%.tar*}"
}

mkdir -p "$disk" || fail "$disk cannot be made: set FLOWERS_LOCAL to a folder on the node's own disk"
exec 9> "$disk/flowers-$(id -u).lock" || fail "$disk cannot be written: set FLOWERS_LOCAL to a folder on the node's own disk"
flock 9
if [[ $action == remove ]]; then remove; exit; fi

source=$2
[[ -e $source ]] || fail "$source: no such file or folder"
[[ -f $source ]] || action=copy
remove_orphans
mkdir -p "$top/users"
: > "$top/users/$SLURM_JOB_ID"
[[ ! -e $top/whole ]] || exit 0
rm -rf "$top/incomplete"
"$action" "$source" || { rm -rf "$top"; fail "$source could not be brought to $disk, $(df -h --output=avail "$disk" | tail -n 1) free there"; }
: > "$top/whole"
