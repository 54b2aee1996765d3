"""Score curves: bypass, induce and KL of every component, by layer and position.

python scripts/figures/scores.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import scores

if __name__ == "__main__":
    figure_script(scores.draw, __doc__)
