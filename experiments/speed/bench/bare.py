"""A worker of the bench: the same mathematics in a plain loop, without this project and without a framework.

    python experiments/speed/bench/bare.py PAIR THREADS

On-policy js on whole logits of the response's tokens, `generate` with its KV cache, fused AdamW, clipping.
"""

import json
import random
import sys
from pathlib import Path

import torch
from protocol import Gate
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Train until the driver ends it."""
    pair, threads = sys.argv[1:]
    gate = Gate()
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(f"{pair}/student")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(f"{pair}/{who}", dtype=torch.float32)
        for who in ("student", "teacher")
    )
    teacher.requires_grad_(False).eval()
    rows = [json.loads(line)["dialogue"] for line in Path(pair, "train.jsonl").read_text().splitlines()]
    prompts = tokenizer([" ".join(row.split()[:64]) for row in rows])["input_ids"]
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    draw = random.Random(0)
    while True:
        gate.between_updates()
        prompt = torch.tensor([prompts[draw.randrange(len(prompts))] for _ in range(8)])
        student.eval()
        ids = student.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=64,
            do_sample=True,
            top_k=0,
            top_p=1.0,
        )
        student.train()
        length = ids.shape[1] - prompt.shape[1]
        ended = (ids[:, -length:] == tokenizer.eos_token_id).cumsum(1)
        mask = ended - (ids[:, -length:] == tokenizer.eos_token_id).long() == 0
        with torch.no_grad():
            log_p = log_softmax(teacher(ids[:, :-1], logits_to_keep=length, use_cache=False).logits, -1)
        log_q = log_softmax(student(ids[:, :-1], logits_to_keep=length, use_cache=False).logits, -1)
        log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
        divergence = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)
        loss = (divergence * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()


if __name__ == "__main__":
    main()
