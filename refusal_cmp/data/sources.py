"""The public repositories that are read, each at one commit, with the checksums that are known.

A checksum stands here if it was computed from the file, or if two independent public records of it agree; the other
files are pinned by their commit alone, and by what they were when they were first downloaded.
"""

from __future__ import annotations

from refusal_cmp.data.download import HubDataset, Repository

PUBLISHED = Repository(
    "andyrdt/refusal_direction",
    "0b9c8bc56a73b42f595fd173156d4aefe9a9143c",
    {
        "dataset/splits/harmful_train.json": "8f5c0eac0efd2a7f99084bbe8d0de2c465e31b1997184783c917969d9de9ece1",
        "dataset/splits/harmful_val.json": "305f1d1e6dfa6c50a32d24a18ef815f42b5441eb83e6d7767d242107162fd9f4",
        "dataset/splits/harmful_test.json": "5e12ae102c3791dee083a69ab6269a78e033411c629bc3f66f75d2fde196d9ef",
        "dataset/splits/harmless_train.json": "86623b1f8a25aa35df153fc97a556dbcebb6a7c881538ae43ee479ca17f2e002",
        "dataset/splits/harmless_val.json": "772010758e7d771ef4c7e5e4acdfd7598dcece1a6f383f20d382f640913a2a4d",
        "dataset/splits/harmless_test.json": "1b5930ce5e855ada758b3116ce7c4aaea9b9d05f8cdd77b385511d4c84173b19",
    },
)
"""The splits of Arditi et al. 2024."""
ADVBENCH = Repository(
    "llm-attacks/llm-attacks",
    "098262edf85f807224e70ecd87b9d83716bf6b73",
    {"data/advbench/harmful_behaviors.csv": "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1"},
)
HARMBENCH = Repository(
    "centerforaisafety/HarmBench",
    "8e1604d1171fe8a48d8febecd22f600e462bdcdd",
    {
        "data/behavior_datasets/harmbench_behaviors_text_test.csv": (
            "75d257b3e7428c52eb7b0154318f455af3e01b09a3794b5e2f3d36054f3c0e29"
        ),
        "eval_utils.py": "46f1db751866848834d45d5128a18d4cc0a820828e89796ab51bc605d10c7058",
    },
)
MALICIOUS_INSTRUCT = Repository("Princeton-SysML/Jailbreak_LLM", "1e490531c0ef4bc13430178bf1fbc8f813e34b1a")
STRONGREJECT = Repository(
    "alexandrasouly/strongreject",
    "f7cad6c17e624e21d8df2278e918ae1dddb4cb56",
    {
        "strongreject_dataset/strongreject_dataset.csv": (
            "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381"
        )
    },
)
TDC = Repository("centerforaisafety/tdc2023-starter-kit", "f7ddd7d1c7bda82c6609ecfaf1484565d08d754a")
XSTEST = Repository(
    "paul-rottger/xstest",
    "475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5",
    {"xstest_prompts.csv": "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a"},
)

ALPACA = HubDataset("tatsu-lab/alpaca", "dce01c9b08f87459cf36a430d809084718273017")
ARC = HubDataset("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
JBB = HubDataset("JailbreakBench/JBB-Behaviors", "886acc352a31533ffbcf4ef22c744658688086fc")
MMLU = HubDataset("cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe")
PILE = HubDataset("monology/pile-uncopyrighted", "3be90335b66f24456a5d6659d9c8d208c0357119")
