"""Plans every row of configs/plans.py and writes one table; see launch.plan for what a plan is.

  python -m launch.plan_recipes --output=DIR [--only=TEXT]

Each row is planned in a process of its own, into DIR/RECIPE/TOPOLOGY/SETTINGS/plan.json. A row whose plan is there is
not planned again, so the same command resumes. Takes minutes a row on two cores, tens of minutes for the largest. A row
that cannot be planned is shown with its error. Writes DIR/plans.md.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from absl import flags

from configs.plans import PLANS, Row
from launch import common
from tc_jepa.storage.files import replace_text

OUTPUT = common.define_path("output", None, "Folder for the plans and the table; made if missing.")
ONLY = flags.DEFINE_string("only", "", "Plan only rows whose recipe or topology contains this text.")

# Settings that only say where words come from, which the table does not show.
UNSHOWN = ("data.path", "captions.vectors")
WITH_TEXT = (*UNSHOWN, "model.text", "conditioner.fuse_first")  # settings that a recipe without text does not have


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("output")
    output = Path(OUTPUT.value)
    for row in PLANS:
        folder = folder_of(output, row)
        if (folder / "plan.json").exists() or ONLY.value not in f"{row.recipe} {row.topology}":
            continue
        print(f"{row.recipe} on {row.topology} {described(row)}", flush=True)
        keys = [f"--config.{key}={value}" for key, value in row.settings.items()]
        command = [sys.executable, "-m", "launch.plan", f"--config=configs/paper.py:{row.recipe}", *keys]
        command += [f"--topology={row.topology}", f"--output={folder}", "--nosearch", "--noprice", f"--cost={row.cost}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        folder.mkdir(parents=True, exist_ok=True)
        if done.returncode:
            error = next((line for line in reversed(done.stderr.splitlines()) if line), "no message")
            replace_text(folder / "error.txt", error + "\n")
            print(error, flush=True)
        replace_text(output / "plans.md", table(output))
    print(table(output))


def described(row: Row) -> str:
    """The settings of a row that are shown, such as "remat=all text=stored"."""
    shown = {key: value for key, value in row.settings.items() if key not in UNSHOWN}
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in sorted(shown.items()))


def folder_of(output: Path, row: Row) -> Path:
    return output / row.recipe / row.topology.replace(":", "_") / (described(row).replace(" ", ",") or "plain")


def table(output: Path) -> str:
    """The table of all rows that have been planned, in Markdown."""
    import pandas as pd

    rows = []
    for row in PLANS:
        folder = folder_of(output, row)
        about = {"recipe": row.recipe, "slice": row.topology, "settings": described(row)}
        if (folder / "plan.json").exists():
            found = json.loads((folder / "plan.json").read_text())
            rows.append(about | cells(found) | price(output, row, found))
        elif (folder / "error.txt").exists():
            rows.append(about | {"fits": (folder / "error.txt").read_text().strip()})
    return pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True) + "\n"


def price(output: Path, row: Row, plan: Mapping[str, Any]) -> dict[str, str]:
    """The seconds of a row over those of I-JEPA with the same settings; nothing where there is no such row."""
    settings = {key: value for key, value in row.settings.items() if key not in WITH_TEXT}
    plain = row._replace(recipe=row.recipe.replace("tc_jepa", "ijepa"), settings=settings)
    path = folder_of(output, plain) / "plan.json"
    if plain.recipe == row.recipe or not path.exists():
        return {}
    seconds = json.loads(path.read_text())["seconds"]
    return {"text costs": f"{plan['seconds'] / seconds:.2f}"} if plan["seconds"] and seconds else {}


def cells(plan: Mapping[str, Any]) -> dict[str, str]:
    memory = plan["memory"]
    spare = 100 * (1 - memory["total"] / plan["limit"])
    found = {
        "fits": f"{spare:.0f} % to spare" if spare >= 0 else "no",
        "temporary, GB": f"{memory['temporary'] / 1e9:.1f}",
        "total, GB": f"{memory['total'] / 1e9:.1f}",
        "TFLOP": f"{plan['flops'] / 1e12:.1f}",
        "compiled in, s": f"{plan['compile_seconds']:.0f}",
    }
    if plan["seconds"] is not None:
        found |= {"seconds": f"{plan['seconds']:.4f}", "days": f"{plan['days']:.1f}"}
    return found


if __name__ == "__main__":
    common.run(main)
