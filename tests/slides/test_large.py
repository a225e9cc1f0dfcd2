"""Large pyramids."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import openslide
import pytest

_LARGE = """
    import re, sys
    from pathlib import Path
    import numpy as np
    from morphogen.slides.pyramid.writer import PyramidWriter
    side, band = 20_000, 700
    line = np.arange(side)
    with PyramidWriter(sys.argv[1], side, side, mpp=0.5, tile=512) as writer:
        for y in range(0, side, band):
            block = np.empty((min(side, y + band) - y, side, 3), np.uint8)
            for k, row in enumerate(range(y, y + len(block))):
                block[k, :, 0], block[k, :, 1], block[k, :, 2] = (row + line) // 157 % 256, row // 83, line // 83
            writer.write(block, y)
    # Not getrusage: its peak is inherited from the process that started this one.
    print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.slow
def test_twenty_thousand_pixels_square_within_a_gibibyte(tmp_path) -> None:
    path = tmp_path / "large.ome.tif"
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_LARGE), str(path)], check=True, capture_output=True, text=True
    )
    assert 50 < float(out.stdout) < 400, "MiB of resident memory; a GiB is allowed"
    slide = openslide.OpenSlide(path)
    assert slide.dimensions == (20_000, 20_000) and slide.level_count == 7
    assert float(slide.properties["openslide.mpp-x"]) == 0.5
    for x, y in ((17_011, 4_003), (19_900, 19_900), (0, 0)):
        seen = np.asarray(slide.read_region((x, y), 0, (50, 50)))[..., :3].astype(int)
        expected = [((x + y) // 157) % 256, y // 83, x // 83]
        assert np.abs(seen[0, 0] - expected).max() <= 6
