"""The tokenizer of a pair that is trained from scratch, learnt from the training split."""

from collections import Counter
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK, BOS = "<pad>", "</s>", "<unk>", "<s>"
"""T5's special tokens; their ids are 0, 1 and 2, as in T5. The last begins a causal model's response."""


def train_tokenizer(
    texts: Sequence[str], vocabulary_size: int, *, causal: bool = False
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of at most `vocabulary_size` tokens; every text ends with EOS.

    For a causal model it ends with BOS instead: a prompt's last token, after which the response begins.

    Where all words of the corpus fit into it, every word is a token and nothing else is: a closed corpus,
    such as a generated one, needs no pieces, and a small model need not learn to avoid them. Otherwise
    byte-level BPE, which writes any text.

    Args:
        texts: prompts and responses of the training split, template included.
        vocabulary_size: special tokens included; BPE needs 259 for its alphabet of bytes, one more if causal.
        causal: of the model.
    """
    names = [PAD, EOS, UNK, BOS] if causal else [PAD, EOS, UNK]
    special = [AddedToken(token, special=True) for token in names]
    end = BOS if causal else EOS
    # A line is split off first, so that its first word is the same token as in the middle of a line: the name
    # of a speaker and the name in a summary are one.
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    words = Counter(word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text))
    if len(words) <= vocabulary_size - len(special):
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        trainer: trainers.Trainer = trainers.WordLevelTrainer(
            vocab_size=vocabulary_size, special_tokens=special, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNK))
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(" \n ", "\n")])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, names.index(end))]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        **({"bos_token": BOS} if causal else {}),
        clean_up_tokenization_spaces=False,
    )
