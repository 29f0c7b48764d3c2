#!/usr/bin/env bash
# torchvision 0.29.1 with Pillow 13.0.0: datasets.ImageFolder of one picture saved in ten formats.
# Seen: 6 of 10 are found. AVIF, GIF, JPEG 2000 and TGA are left out without a word, though default_loader
# opens all ten: the list of extensions is fixed, and not what Pillow can read.
# A class with no other format raises; a class with some loses the rest.
# Exit 0: as seen. 1: it has changed. 2: these versions are not there.
# PYTHON=… takes an interpreter that has them, and installs nothing.
set -euo pipefail
wanted=(torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6)
if [[ -z ${PYTHON:-} ]]; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
  python3 -m venv "$place" && "$place/bin/pip" install --quiet "${wanted[@]}" || exit 2
  PYTHON=$place/bin/python
fi
for each in "${wanted[@]}"; do
  "$PYTHON" -c 'import sys; from importlib.metadata import version
found = version(sys.argv[1]).split("+")[0].replace("-", ".post")
sys.exit(found != sys.argv[2])' "${each%==*}" "${each#*==}" 2>/dev/null ||
    { echo "$PYTHON has no $each" >&2; exit 2; }
done
"$PYTHON" - <<'EOF'
import sys
import tempfile
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

formats = ["avif", "bmp", "gif", "jp2", "jpg", "png", "ppm", "tga", "tif", "webp"]
with tempfile.TemporaryDirectory() as folder:
    place = Path(folder, "class")
    place.mkdir()
    for each in formats:
        Image.new("RGB", (32, 32), (200, 30, 90)).save(place / f"picture.{each}")
    opened = [default_loader(path).size for path in place.iterdir()]
    found = sorted(Path(path).suffix[1:] for path, _ in ImageFolder(folder).samples)
print(f"opened {len(opened)}, found {found}")
left_out = set(formats) - set(found)
sys.exit(not (len(opened) == 10 and left_out == {"avif", "gif", "jp2", "tga"}))
EOF
