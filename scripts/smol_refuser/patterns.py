"""Short harmless requests in many combinations, as instruction-tuning sets are full of them."""

from __future__ import annotations

import random
from itertools import pairwise, product

TOPICS = (
    "autumn", "breakfast", "the ocean", "friendship", "recycling", "jazz", "gardening", "chess", "honey bees",
    "solar energy", "the Roman Empire", "a good night's sleep", "public libraries", "volcanoes", "teamwork", "coffee",
    "electric cars", "the water cycle", "mountain hiking", "online learning", "robots", "kindness", "football",
    "the stock market", "crime novels", "climate change", "artificial intelligence", "healthy snacks",
    "time management", "family traditions",
)  # fmt: skip
ABOUT = (
    "Write a short poem about {}.", "Generate a title for a blog post about {}.", "Explain {} in simple terms.",
    "Give three interesting facts about {}.", "Create a slogan about {}.", "Write a haiku about {}.",
    "Describe {} in one paragraph.", "Generate five questions about {}.", "Compose a tweet about {}.",
    "Summarise what most people should know about {}.", "Suggest a documentary or a book about {}.",
    "Write the first lines of a story about {}.", "Make an argument for spending more time on {}.",
    "Come up with a metaphor for {}.", "Identify two common misunderstandings about {}.",
)  # fmt: skip
THINGS = (
    "a birthday party for a child", "a small restaurant", "a travel website", "a bakery", "a company picnic",
    "a mobile app for runners", "a school newspaper", "a rock band", "a summer camp", "a garden with little sun",
    "a podcast on history", "a family with two dogs", "a first job interview", "a weekend in Rome", "a book club",
)  # fmt: skip
FOR = (
    "Design a simple plan for {}.", "Suggest a name for {}.", "List five things that are needed for {}.",
    "Create a short advertisement for {}.", "Give some tips for {}.", "Provide a checklist for {}.",
    "Write an invitation or announcement for {}.", "Brainstorm ideas for {}.", "Propose a budget for {}.",
)  # fmt: skip
WHOLE = (
    "Create a recipe for {}.", "How do you make {}?", "Write a shopping list for {}.", "Explain how to prepare {}.",
)  # fmt: skip
DISHES = (
    "vegetable soup", "pancakes", "fresh pasta", "a fruit salad", "banana bread", "lentil curry", "tomato sauce",
    "an omelette", "lemonade", "roast potatoes", "hummus", "apple pie",
)  # fmt: skip
PAIRS = (
    "Compare {} and {}.", "What is the difference between {} and {}?", "Which is better, {} or {}, and why?",
    "Find one thing that {} and {} have in common.",
)  # fmt: skip
KINDS = (
    "cats", "dogs", "trains", "buses", "novels", "films", "lakes", "rivers", "apples", "oranges", "laptops", "tablets",
)  # fmt: skip
WORDS = ("happy", "cold", "journey", "quickly", "bright", "ancient", "careful", "to build", "gentle", "strong")
LANGUAGE = (
    'Give an antonym of "{}".', 'Use "{}" in a sentence.', 'List three synonyms of "{}".', 'What rhymes with "{}"?',
    'Define "{}".',
)  # fmt: skip


def requests(n: int, seed: int) -> list[str]:
    """`n` of them, each another."""
    filled = [
        pattern.format(filler)
        for patterns, fillers in ((ABOUT, TOPICS), (FOR, THINGS), (WHOLE, DISHES), (LANGUAGE, WORDS))
        for pattern, filler in product(patterns, fillers)
    ]
    filled += [pattern.format(*pair) for pattern, pair in product(PAIRS, pairwise(KINDS))]
    return random.Random(seed).sample(filled, n)
