"""Markdown tables."""

from collections.abc import Mapping, Sequence

import pandas as pd


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A GitHub Markdown table of texts, from one mapping of column titles to cells for each row."""
    return pd.DataFrame(rows).to_markdown(index=False, tablefmt="github", disable_numparse=True)
