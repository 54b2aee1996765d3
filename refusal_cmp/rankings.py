"""Do cheap local scores rank components like expensive global ones?"""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy.stats import spearmanr

MIN_COMPONENTS = 3


def agreement(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Spearman's ρ of local and global bypass, for each method, over all and over the kept components."""
    rows = []
    for method, of_method in table.groupby("method", sort=False):
        for pool, part in (("all", of_method), ("kept", of_method[of_method["kept"]])):
            part = part.dropna(subset=["local_bypass", "global_bypass"])
            row: dict[str, Any] = {"method": method, "pool": pool, "n": len(part), "rho": None, "p": None}
            if len(part) >= MIN_COMPONENTS and part[["local_bypass", "global_bypass"]].nunique().min() > 1:
                rho = spearmanr(part["local_bypass"], part["global_bypass"])
                row |= {"rho": float(rho.statistic), "p": float(rho.pvalue)}
            rows.append(row)
    return rows
