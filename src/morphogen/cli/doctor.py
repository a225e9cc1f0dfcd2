"""``morphogen doctor``: what works on this machine, and what to do about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cyclopts import App

from morphogen.cli.common import AsJson, print_json

app = App(
    name="doctor", help="Versions, devices, optional parts, encoders, disk; what to do about what is missing."
)

OPTIONAL = {
    "squidpy": ("spatial plots and statistics", "pip install 'morphogen[squidpy]'"),
    "tensorboard": ("TensorBoard logs of training", "pip install 'morphogen[tensorboard]'"),
    "wandb": ("Weights & Biases logs of training", "pip install 'morphogen[wandb]'"),
    "bitsandbytes": ("8-bit AdamW", "pip install 'morphogen[bitsandbytes]'"),
}


@app.default
def doctor(*, folder: Path = Path("."), json: AsJson = False) -> None:
    """Say what works here and what to do about the rest.

    Parameters
    ----------
    folder
        Where results would go: its free space and whether it can be written to.
    """
    facts = {
        "versions": _versions(),
        "devices": _devices(),
        "slides": _slides(),
        "optional": _optional(),
        "encoders": _encoders(),
        "disk": _disk(folder),
    }
    if json:
        print_json(facts)
    else:
        _print(facts)


def _versions() -> dict[str, str]:
    from morphogen.core.provenance import versions

    return versions()


def _devices() -> dict[str, Any]:
    import psutil
    import torch

    from morphogen.core.running.threads import cpu_cores

    gpus = [
        {
            "name": torch.cuda.get_device_name(i),
            "memory_gib": round(torch.cuda.get_device_properties(i).total_memory / 2**30, 1),
            "bf16": torch.cuda.is_bf16_supported(),
        }
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return {
        "cuda": gpus,
        "mps": torch.backends.mps.is_available(),
        "cpu_cores": cpu_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "advice": None if gpus else "No CUDA device: everything runs on the CPU with the small model sizes.",
    }


def _slides() -> dict[str, Any]:
    try:
        import openslide

        return {"openslide": openslide.__library_version__, "advice": None}
    except Exception as error:  # a broken shared library raises more than ImportError
        return {"openslide": None, "advice": f"OpenSlide does not load ({error}): pip install openslide-bin"}


def _optional() -> list[dict[str, Any]]:
    from importlib import metadata

    rows = []
    for name, (use, command) in OPTIONAL.items():
        try:
            rows.append({"name": name, "version": metadata.version(name), "use": use, "advice": None})
        except metadata.PackageNotFoundError:
            rows.append({"name": name, "version": None, "use": use, "advice": command})
    return rows


def _encoders() -> list[dict[str, Any]]:
    from morphogen.slides import list_encoders

    return [
        {
            "name": encoder.name,
            "width": encoder.width,
            "licence": encoder.licence,
            "gated": encoder.gated,
            "offline": encoder.offline,
            "advice": encoder.advice,
        }
        for encoder in list_encoders()
    ]


def _disk(folder: Path) -> dict[str, Any]:
    import shutil

    from morphogen.core.errors import OutputError
    from morphogen.core.files import writable_folder

    advice = None
    try:
        writable_folder(folder)
    except OutputError as error:
        advice = str(error)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if free < 5:
        advice = advice or "Less than 5 GiB free: whole-slide results may not fit; choose another --out."
    return {"folder": str(folder.absolute()), "free_gib": round(free, 1), "advice": advice}


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    console.print("[bold]Versions[/]", ", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
    devices = facts["devices"]
    found = [
        f"{gpu['name']} ({gpu['memory_gib']} GiB, bf16 {'yes' if gpu['bf16'] else 'no'})"
        for gpu in devices["cuda"]
    ]
    found += ["Apple MPS"] if devices["mps"] else []
    found += [f"CPU with {devices['cpu_cores']} cores, {devices['memory_gib']} GiB memory"]
    console.print("[bold]Devices[/]", "; ".join(found))
    console.print("[bold]Slides[/]", f"OpenSlide {facts['slides']['openslide']}")
    console.print("[bold]Disk[/]", f"{facts['disk']['free_gib']} GiB free at {facts['disk']['folder']}")
    for group, title in ((True, "Encoders that load offline"), (False, "Encoders that need something first")):
        rows = [row for row in facts["encoders"] if row["offline"] is group]
        if rows:
            console.print(f"[bold]{title}[/]")
        for row in rows:
            gated = ", gated" if row["gated"] else ""
            about = f"{row['width']} numbers, {row['licence']}{gated}"
            console.print(
                f"  {row['name']:<18} {about}{': ' + row['advice'] if row['advice'] else ''}", markup=False
            )
    missing = [f"{row['name']} ({row['use']}): {row['advice']}" for row in facts["optional"] if row["advice"]]
    advice = [facts[part]["advice"] for part in ("devices", "slides", "disk") if facts[part]["advice"]]
    if missing or advice:
        console.print("[bold]What to do[/]")
    for line in [*advice, *(f"Optional: {line}" for line in missing)]:
        console.print(f"  {line}", markup=False)
