"""A teacher, a student, their tokenizer and rows of text on disk, for ours and for the peers alike.

    python experiments/speed/bench/pair.py FOLDER VOCABULARY PROMPT [WIDTH LAYERS]

Random Llamas: the teacher of 320 x 8 layers (12.5M parameters at 8k), the student of 160 x 6 (3.2M) unless
WIDTH and LAYERS say otherwise. A token is a word, so a prompt has as many tokens as it has words. The end
token is as likely as any other (1 in V): a batch practically never ends before the last token it may write.
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS = 4096


def llama(vocabulary: int, width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A random model; id 0 pads, 1 ends, 2 is unknown."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * 2.7) // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token; a chat is the contents of its messages."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{index}": index for index in range(3, vocabulary)}
    words_only = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return wrapped


def write(folder: Path, vocabulary: int, prompt: int, width: int = 160, layers: int = 6) -> None:
    """`folder/{teacher,student}` and `folder/{train,valid,test}.jsonl`, once."""
    if (folder / "train.jsonl").is_file():
        return
    words = tokenizer(vocabulary)
    for name, size in (("teacher", (320, 8, 1)), ("student", (width, layers, 2))):
        model = llama(vocabulary, *size)
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    draw = random.Random(0)
    for split, count in (("test", 2), ("valid", 2), ("train", ROWS)):
        rows = [
            {
                "id": str(index),
                "dialogue": _text(draw, vocabulary, prompt),
                "summary": _text(draw, vocabulary, 63),
            }
            for index in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _text(draw: random.Random, vocabulary: int, words: int) -> str:
    return " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(words))


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    write(Path(folder), *map(int, numbers))
