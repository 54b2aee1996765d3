"""Strength sweeps of activation addition, reflection and other interventions.

python scripts/figures/strengths.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import strengths

if __name__ == "__main__":
    figure_script(strengths.draw, __doc__)
