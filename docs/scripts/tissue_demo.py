"""Train the tissue model of the demonstration and write it where the package keeps it.

``python docs/scripts/tissue_demo.py --out runs/tissue-demo`` trains the small model on the upper part of the packaged
slide, some 20 minutes of two cores; a killed run goes on. ``--write`` puts its averaged weights, in half precision,
beside the stain model. The lower part of the slide, which the demonstration draws again, is not looked at.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from morphogen.demo.chapters.tissue import train_tissue
from morphogen.demo.workspace import Workspace, real_slide

ASSETS = Path(__file__).resolve().parents[2] / "src" / "morphogen" / "demo" / "assets"
STEPS, STRIDE = 3000, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="Replace the packaged model.")
    args = parser.parse_args()
    slide = real_slide(Workspace(args.out))
    model = train_tissue(slide, args.out / "run", STEPS, STRIDE, args.device)
    if args.write:
        target = ASSETS / "tissue-cmu-1"
        shutil.rmtree(target, ignore_errors=True)
        model.network.half()
        model.save_pretrained(target)
        print(f"written: {target}")


if __name__ == "__main__":
    main()
