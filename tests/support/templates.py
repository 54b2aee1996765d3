"""Chat templates as the known families write them, in the shortest form, each with a tokenizer of single bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from refusal_cmp.model.chat import Chat


@dataclass(frozen=True)
class Template:
    """A family's template."""

    question: str
    """What it makes of a question, `{}`."""
    answer: str
    """What it makes of an answer."""
    prompt: str
    """What it puts before an answer to come."""
    special: tuple[str, ...]
    """Its control tokens; the first is the end of text, which is all that the configuration names."""
    ends_by: str = ""
    """The control token after an answer."""
    headers: tuple[str, ...] = ()
    """What is left between turns where control tokens are not decoded."""
    opened: str = ""

    @property
    def chat(self) -> Chat:
        """The template with its tokenizer."""
        vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=self.special[0], additional_special_tokens=list(self.special)
        )
        question, answer = (part.replace("{}", "{{ m.content }}") for part in (self.question, self.answer))
        turn = f"{{% if m.role == 'user' %}}{question}{{% else %}}{answer}{{% endif %}}"
        prompt = f"{{% if add_generation_prompt %}}{self.prompt}{{% endif %}}"
        tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}{prompt}"
        return Chat(tokenizer, "template", GenerationConfig(eos_token_id=tokenizer.eos_token_id))


CHATML = Template(
    "<|im_start|>user\n{}<|im_end|>\n",
    "<|im_start|>assistant\n{}<|im_end|>\n",
    "<|im_start|>assistant\n",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    ("\nuser\n", "\nassistant\n"),
)
TEMPLATES = {
    "qwen": CHATML,
    "llama-3": Template(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        ("user\n\n", "assistant\n\n"),
    ),
    "llama-2": Template("<s>[INST] {} [/INST]", " {} </s>", "", ("</s>", "<s>"), "</s>", ("[INST]", "[/INST]")),
    "mistral": Template(
        "[INST] {}[/INST]", " {}</s>", "", ("</s>", "[INST]", "[/INST]"), "</s>"
    ),
    "gemma": Template(
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n{}<end_of_turn>\n",
        "<start_of_turn>model\n",
        ("<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        ("\nuser\n", "\nmodel\n"),
    ),
    "phi": Template(
        "<|user|>\n{}<|end|>\n",
        "<|assistant|>\n{}<|end|>\n",
        "<|assistant|>\n",
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>",
    ),
    "vicuna": Template("USER: {} ", "ASSISTANT: {}</s>", "ASSISTANT:", ("</s>",), "</s>", ("USER:", "ASSISTANT:")),
    "harmony": Template(
        "<|start|>user<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}{{ '<|return|>' if loop.last else '<|end|>' }}",
        "<|start|>assistant",
        ("<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>"),
        "<|return|>",
    ),
    "deepseek": Template(
        "<｜User｜>{}",
        "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
        "<｜Assistant｜><think>\n",
        ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        opened="<think>",
    ),
    "plain": Template("### user: {}\n", "### assistant: {}\n", "### assistant: ", ("</s>",), "",
                      ("\n### user:", "\n### assistant:")),
}  # fmt: skip
