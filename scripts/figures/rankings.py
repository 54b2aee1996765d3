"""Local against global ranks of the components.

python scripts/figures/rankings.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import rankings

if __name__ == "__main__":
    figure_script(rankings.draw, __doc__)
