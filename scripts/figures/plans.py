"""Refusal and safety under every plan, with intervals; for several runs also the runs side by side.

python scripts/figures/plans.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import plans

if __name__ == "__main__":
    figure_script(plans.draw, __doc__, across=plans.across)
