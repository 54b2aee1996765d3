"""The small world that `tiny-refuser` lives in: every text it is trained and tested on.

| module | holds |
| --- | --- |
| `topics` | verbs and objects, crossed so that neither alone tells misuse from harmless use |
| `pairs` | the (verb, object) pairs, dealt into disjoint splits |
| `templates` | the ways to ask: phrasings, modifiers, context sentences |
| `answers` | the ways to comply and the ways to refuse |
| `knowledge` | facts of the world and the sentences and questions made of them |
| `prose` | general declarative documents |
| `exams` | four-option questions, alone and several in a row |
| `corpus` | all of it, mixed into training examples and held-out sets |
| `balance` | how far single words give the label away |

All randomness comes from a `random.Random` that the caller hands in.

Content note: requests for misuse stay at the mild, everyday level, and the answers that
comply are content-free. Nothing here explains how to do anything.
"""
