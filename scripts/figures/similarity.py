"""Similarity of methods: cosine of directions and principal angles of subspaces, by layer.

python scripts/figures/similarity.py RUN… [--out FOLDER] [--methods NAME,NAME]
"""

from _script import figure_script

from refusal_cmp.report.figures import similarity

if __name__ == "__main__":
    figure_script(similarity.draw, __doc__)
