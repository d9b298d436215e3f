#!/usr/bin/env python3
"""Trains a small language model on Python's own library and writes its checkpoints, for `benches/sequences.py`.

    train.py OUT CHECKPOINTS STEPS WIDTH LAYERS [NEAR]

OUT gets CHECKPOINTS directories, STEPS steps apart: model.safetensors (bf16), model_fp32.safetensors, optimizer.pt (AdamW)
and trainer_state.json; and one each NEAR steps (1,10,50) behind the middle one. Letters are the vocabulary. Needs torch and
safetensors; one thread, seeds fixed.
"""

import json
import pathlib
import sys
import sysconfig

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

LENGTH, BATCH = 128, 8


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        linear = lambda a, b: torch.nn.Linear(a, b, bias=False)
        self.first, self.second = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.gate, self.up, self.down = linear(width, 3 * width), linear(width, 3 * width), linear(3 * width, width)

    def forward(self, x):
        heads = [part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(self.first(x)).chunk(3, -1)]
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(-2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(torch.nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.embed = torch.nn.Embedding(256, width)
        self.layers = torch.nn.Sequential(*[Block(width) for _ in range(layers)])
        self.norm, self.head = torch.nn.RMSNorm(width), torch.nn.Linear(width, 256, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.layers(self.embed(tokens))))


def main():
    out = pathlib.Path(sys.argv[1])
    checkpoints, steps, width, layers = map(int, sys.argv[2:6])
    near = [int(number) for number in sys.argv[6].split(",")] if len(sys.argv) > 6 else []
    wanted = {steps * number for number in range(1, checkpoints + 1)} | {(checkpoints + 1) // 2 * steps + n for n in near}
    torch.manual_seed(1)
    torch.set_num_threads(1)
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    text = torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in sorted(library.glob("*.py")))), dtype=torch.uint8)
    model = Model(width, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = lambda step: min(1, (step + 1) / 20) * (1 - 0.9 * step / (checkpoints * steps))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step in range(1, checkpoints * steps + 1):
        at = torch.randint(0, len(text) - LENGTH - 1, (BATCH,))
        rows = torch.stack([text[n:n + LENGTH + 1] for n in at]).long()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step in wanted:
            folder = out / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            state = model.state_dict()
            save_file({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, folder / "model.safetensors")
            save_file(state, folder / "model_fp32.safetensors")
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "loss": loss.item()}))


if __name__ == "__main__":
    main()
