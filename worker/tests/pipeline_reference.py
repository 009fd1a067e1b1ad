"""Records what diffusers' pipelines compute around the denoiser: token ids, text embeddings, latents.

    pip install -r worker/tests/requirements.txt
    pip install --no-deps open_clip_torch==3.3.0
    python worker/tests/pipeline_reference.py worker/tests/golden/pipelines [--full-vocabulary] [NAME ...]

Of open_clip only the file of CLIP's merges (OpenAI's, MIT licence) is read. It goes in without its dependencies because
one of them is ftfy: where ftfy is installed, transformers' slow CLIPTokenizer cleans its text with it, and gives other
ids. What is recorded here is the tokenizer without ftfy.

Each pipeline is written to OUT/NAME as diffusers lays it out, but for the denoiser and the scheduler, which are null in
its model_index.json. Weights are random and f16; every recording is computed in f32 by what diffusers loads from that
folder. Embeddings are as wide as reference.py's small models want them. The folders keep oddities of published ones:

    sd      the encoder's weights hold `position_ids`; the VAE's attention has its names from before diffusers 0.13
            (query, key, value, proj_attn), and its config no `scaling_factor`. Unlike the published one, its
            `eos_token_id` is the tokenizer's, and pooling is at its first place
    sd2     tokenizer_config.json pads with <|endoftext|>, special_tokens_map.json with "!": the latter holds. Every "!"
            of a prompt is that special token, too. `eos_token_id` is 2, which means: pool at the highest id
    sdxl    special tokens as transformers 4.34 and later save them; tokenizer_2 pads with "!"; `eos_token_id` is 2
    pixart  a text encoder in two shards, with more embeddings than there are tokens and d_kv * num_heads < d_model

OUT/NAME.json has `max_length`, `recorded` (this many of the prompts, from the first, are in the safetensors file) and
`prompts`. A prompt has its `text`; the text as `prepared` for the tokenizer (PixArt lowers and strips; its
clean_caption is off, which would need ftfy and bs4); and for each tokenizer's folder the ids as the pipeline pads and
truncates them, by `slow`, the tokenizer that pipelines load, and by `fast`, what transformers converts it to, which
differs now and then. PixArt has `slow_mask` and `fast_mask`, too, and a `max_length` of 40 where the pipeline has 300.
Prompts keep to Unicode 13, for the slow CLIPTokenizer drops what Python's unicodedata doesn't know.

OUT/NAME.safetensors has, ids and masks as i64 and the rest as f32, with B = `recorded` and L = `max_length`:

    input_ids [B, L], last_hidden_state [B, L, C] after the final norm, and for CLIP pooled [B, C]; of SDXL's second
        encoder input_ids_2, last_hidden_state_2, pooled_2, and text_embeds_2 [B, P], which is pooled_2 projected
    prompt_embeds [B, L, D] and what else encode_prompt returns: pooled_prompt_embeds [B, P], prompt_attention_mask
        [B, L]; the same with negative_ in front, where no negative prompt is given
    empty_prompt_embeds [1, L, D], empty_pooled_prompt_embeds [1, P]: SDXL's where it is given, and empty
    long.*: PixArt's of the fifth prompt alone, at the pipeline's own 300 tokens
    image [2, 3, H, W] in [-1, 1], latent_mean and latent_logvar [2, 4, h, w], latents = latent_mean * scaling_factor,
        and decoded [2, 3, H, W] from latents / scaling_factor
"""

import argparse
import copy
import gzip
import importlib.util
import io
import json
import pathlib
import random
import re

import diffusers
import sentencepiece
import torch
import transformers
from diffusers import AutoencoderKL, PixArtSigmaPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    T5TokenizerFast,
)
from transformers.models.clip.tokenization_clip import bytes_to_unicode
from transformers.utils import is_ftfy_available

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SMALL_MERGES, ALL_MERGES = 1500, 49152 - 256 - 2
PIXART_TOKENS = 40

LONG = (
    "an intricate oil painting of a quiet harbour town at dawn, fishing boats, gulls, mist over the water, warm light "
    "in the windows, cobbled streets, an old lighthouse on the cliff, dramatic clouds, highly detailed, soft shadows, "
    "35mm film grain, volumetric light, masterpiece, by a forgotten painter, in a heavy gilded frame"
)
RECORDED = [
    "",
    "a photo of a cat sitting on a wooden bench, golden hour",
    "WOW! It's a FOX -- don't they'll say?! 2024, 50%",
    "café 東京の夜 🦊👩\u200d🚀 שלום",
    LONG,
    "a dog <|endoftext|> and </s> a bird",
]
PROMPTS = RECORDED + [
    "A Portrait Of An OLD Man, OIL ON CANVAS",
    "isn't we've I'm he'd you're she'll DON'T it's",
    "the cat’s pajamas, it’s ‘quoted’",
    "rock'n'roll 'tis the '90s o'clock's ''s 'S 'LL",
    "(masterpiece:1.2), [best quality], {8k}, <lora:foo:0.8>",
    "mail someone@example.com; https://example.com/a_b?c=d&e=%20#f",
    "1234567890 3.14159 1,000,000 4x4 v2.1b",
    "½ ² x³ ٣٤ Ⅷ ① 万",
    "!",
    "hello!world ! !! wow!!!",
    "... … —–-‐ “quotes” «guillemets» „low“ 、。",
    "snake_case camelCase kebab-case C++ C# $5 €10 ^ ~ ` | \\ /",
    "naïve façade Ångström ÅNGSTRÖM Éclair",
    "nai\u0308ve fac\u0327ade A\u030angstro\u0308m A\u030aNGSTRO\u0308M E\u0301clair",
    "Ⅷ\u0308 ²\u200cx ｈ\u0302 …\u0327",
    "x\u0302\u0323 q\u0307 Z\u0351\u0343a\u0305lgo \u0301alone",
    "İstanbul IŞIK ıI ß ẞ STRASSE ǅ",
    "ΣΊΣΥΦΟΣ ΟΔΟΣ Σ σοφός",
    "Привет, МИР! Ёлка и\u0306",
    "猫の写真",
    "一只猫坐在长椅上, oil painting",
    "고양이 사진 \u1100\u1161\u11a8",
    "compatibility \uf900 \u2f00 ideographs豈",
    "ひらがな カタカナ ｶﾀｶﾅ ﾊﾞ ー",
    "שלום עולם مرحبا بالعالم \u200fאבג\u200e abc",
    "नमस्ते दुनिया สวัสดี",
    "a\tphoto\nof\r\na  cat   on \t\n grass",
    "  leading and trailing  ",
    "no\u00a0break ideographic\u3000space em\u2003quad line\u2028para\u2029next\u0085end",
    "vertical\x0btab form\x0cfeed bell\x07 unit\x1fsep nul\x00end del\x7f",
    "zero\u200bwidth join\u200der non\u200cjoiner word\u2060joiner bom\ufeff soft\u00adhyphen",
    "\ufeffbyte order mark",
    "replacement \ufffd private \ue000 use",
    "ﬁsh ﬂy eﬃcient ﬅ ŉ ĳ Ǆ",
    "ＦＵＬＬ　ｗｉｄｔｈ！？１２３ ㎏ ㈱ ™ ℃",
    "😀😃🎉 👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 ❤\ufe0f 🇯🇵 1\ufe0f⃣",
    "𝕸𝖆𝖙𝖍 𝒸𝓊𝓇𝓈𝒾𝓋ℯ 𠮷野家",
    "'ſ it'ſ \u212aelvin \u212b",
    "   ",
    "\t\n ",
    "\u200b\u00ad",
    EOS,
    f"{BOS}a cat{EOS} a dog",
    f"{EOS}{EOS} joined{EOS}words",
    "<|EndOfText|> mixed <|STARTOFTEXT|> case",
    "<|endof\u00adtext|>hidden <|endoftext |> <|endoftext",
    "</s>",
    "a cat</s>",
    "</S> <pad> <unk>cat <PAD> <s>",
    "<extra_id_0> walks in <extra_id_1> park<extra_id_99>.",
    "a <extra_id_7> b <extra_id_100> c <EXTRA_ID_5>",
    "▁already▁marked _ ▁",
    "cat</w> </w>dog",
    "a" * 120,
    "a " * 75,
    "a " * 76,
    "!" * 90,
    "🦊" * 40,
    "a photo " * 60,
]

# In T5's small vocabulary besides English.
FOREIGN = "café façade naïve jalapeño über “vintage” … 東京 猫 Привет мир 35mm 8k 2024 1.2 50% [a] (b) c/d don't it's"


def randomise(model, seed):
    """Draws every parameter, norms and biases included, and rounds it to f16."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            noise = 0.1 * noise
        elif parameter.ndim == 1:
            noise = 1 + 0.2 * noise
        else:
            noise = noise / parameter[0].numel() ** 0.5
        parameter.data = noise.half().float()
    return model.eval()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def clip_merges(full):
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise SystemExit("CLIP's merges are missing: pip install --no-deps open_clip_torch==3.3.0")
    path = pathlib.Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : (ALL_MERGES if full else SMALL_MERGES) + 1]


def clip_tokenizer(folder, merges, pad=EOS, pad_in_config=EOS):
    """A slow CLIPTokenizer's four files as transformers 4.2x saves them, and its vocabulary.

    Ids go to bytes, bytes that end a word, merges, start and end of text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(bytes_to_unicode().values())
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
        BOS,
        EOS,
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")

    special = {
        name: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in [("bos_token", BOS), ("eos_token", EOS), ("unk_token", EOS)]
    }
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad_in_config,
        "tokenizer_class": "CLIPTokenizer",
    }
    config |= {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    write_json(folder / "tokenizer_config.json", dict(sorted(config.items())))
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad})
    return vocabulary


def clip_tokenizer_resaved(folder, merges, pad=EOS):
    """The same as transformers 4.34 and later save them: special tokens by id."""
    vocabulary = clip_tokenizer(folder, merges)
    added = {
        str(vocabulary[token]): {
            "content": token,
            "lstrip": False,
            "normalized": token == BOS,
            "rstrip": False,
            "single_word": False,
            "special": token == pad != EOS,
        }
        for token in sorted({pad, BOS, EOS}, key=vocabulary.get)
    }
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad, "unk_token": EOS}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= special | {"added_tokens_decoder": added, "additional_special_tokens": []}
    config |= {"clean_up_tokenization_spaces": True}
    write_json(folder / "tokenizer_config.json", dict(sorted(config.items())))
    write_json(folder / "special_tokens_map.json", special)
    return vocabulary


def t5_tokenizer(folder, merges):
    """A T5Tokenizer's four files. Its SentencePiece model is trained on random sentences of the words in `merges`."""
    words = [merge.replace(" ", "").removesuffix("</w>") for merge in merges if merge.endswith("</w>")]
    draw = random.Random(0)
    weights = [1 / (rank + 10) for rank in range(len(words))]
    sentences = [" ".join(draw.choices(words, weights, k=12)) for _ in range(3000)]
    sentences += [FOREIGN, "".join(map(chr, range(33, 127)))] * 3  # as with T5's, no ASCII is unknown
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=500,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        byte_fallback=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    T5Tokenizer(str(folder / "spiece.model"), legacy=True, model_max_length=512).save_pretrained(folder)


def clip_encoder(kind, seed, vocabulary, ids=(0, 2, 1), **config):
    """`ids` are start, end and padding in config.json: 0, 2 and 1 in the published ones, unlike in their tokenizers."""
    start, end, pad = ids
    config |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    return randomise(kind(CLIPTextConfig(vocab_size=len(vocabulary), **config)), seed)


def autoencoder(seed, channels, **config):
    return randomise(
        AutoencoderKL(
            block_out_channels=channels,
            down_block_types=["DownEncoderBlock2D"] * len(channels),
            up_block_types=["UpDecoderBlock2D"] * len(channels),
            norm_num_groups=4,
            **config,
        ),
        seed,
    )


def as_sd15(folder):
    """Gives weights the names, and the VAE the config, that Stable Diffusion 1.5 is published with."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def published(name):
        for new, old in names.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        return name

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({published(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    path = folder / "text_encoder" / "model.safetensors"
    positions = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(load_file(path) | positions, path, {"format": "pt"})
    path = folder / "vae" / "config.json"
    later = "force_upcast|latents_mean|latents_std|mid_block_add_attention|scaling_factor|shift_factor|use_.*quant_conv"
    config = json.loads(path.read_text())
    write_json(path, {key: value for key, value in config.items() if not re.fullmatch(later, key)})


def written(folder, kind, models, absent, shard=None, change=None, **config):
    """Writes the models in f16 and model_index.json, and returns the pipeline that diffusers loads from the folder."""
    index = {"_class_name": kind.__name__, "_diffusers_version": diffusers.__version__, **config}
    index |= {name: [None, None] for name in absent}
    for path in folder.glob("tokenizer*"):
        index[path.name] = ["transformers", json.loads((path / "tokenizer_config.json").read_text())["tokenizer_class"]]
    for name, model in models.items():
        library = "diffusers" if name == "vae" else "transformers"
        index[name] = [library, type(model).__name__]
        sharding = {"max_shard_size": shard} if shard and name == "text_encoder" else {}
        copy.deepcopy(model).half().save_pretrained(folder / name, **sharding)
    write_json(folder / "model_index.json", dict(sorted(index.items())))
    if change:
        change(folder)

    pipe = kind.from_pretrained(folder, torch_dtype=torch.float32, **dict.fromkeys(absent))
    for name, model in models.items():
        loaded = getattr(pipe, name).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items()), f"{folder}: {name}"
    return pipe


def tokenised(folder, pipe, fast, length, prepare=str, masks=False):
    """The rows of `prompts`, and each slow tokenizer's ids and mask of those that are recorded."""
    rows = [{"text": text, "prepared": prepare(text)} for text in PROMPTS]
    inputs = {}
    for path in sorted(folder.glob("tokenizer*")):
        for speed, tokenizer in [("slow", getattr(pipe, path.name)), ("fast", fast.from_pretrained(path))]:
            got = tokenizer(
                [row["prepared"] for row in rows],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            for row, ids, mask in zip(rows, got.input_ids.tolist(), got.attention_mask.tolist()):
                row.setdefault(path.name, {})[speed] = ids
                if masks:
                    row[path.name][f"{speed}_mask"] = mask
            if speed == "slow":
                inputs[path.name] = [tensor[: len(RECORDED)] for tensor in (got.input_ids, got.attention_mask)]
    return rows, inputs


def images(vae, height, width):
    """Two images of gradients and noise through the VAE."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, height)[:, None] * torch.linspace(1, -1, width)
    image = (ramp + 0.4 * torch.randn(2, 3, height, width, generator=generator)).clamp(-1, 1)
    posterior = vae.encode(image).latent_dist
    latents = posterior.mean * vae.config.scaling_factor
    return {
        "image": image,
        "latent_mean": posterior.mean,
        "latent_logvar": posterior.logvar,
        "latents": latents,
        "decoded": vae.decode(latents / vae.config.scaling_factor).sample,
    }


def save(folder, length, rows, tensors):
    head = json.dumps({"max_length": length, "recorded": len(RECORDED)})[1:-1]
    body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    folder.with_suffix(".json").write_text(f'{{{head}, "prompts": [\n{body}\n]}}\n')
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, folder.with_suffix(".safetensors"))
    differ = sum(row[key]["slow"] != row[key]["fast"] for row in rows for key in row if key.startswith("tokenizer"))
    print(f"{folder.name}: {len(rows)} prompts, {differ} times slow and fast differ; {len(tensors)} tensors")


def stable_diffusion(folder, models, change=None):
    absent = ["unet", "scheduler", "safety_checker", "feature_extractor", "image_encoder"]
    absent += [] if "vae" in models else ["vae"]
    pipe = written(folder, StableDiffusionPipeline, models, absent, change=change, requires_safety_checker=False)
    rows, inputs = tokenised(folder, pipe, CLIPTokenizerFast, 77)
    ids, _ = inputs["tokenizer"]
    encoded = pipe.text_encoder(ids)
    given, negative = pipe.encode_prompt(RECORDED, "cpu", 1, True)
    tensors = {
        "input_ids": ids,
        "last_hidden_state": encoded.last_hidden_state,
        "pooled": encoded.pooler_output,
        "prompt_embeds": given,
        "negative_prompt_embeds": negative,
    }
    if "vae" in models:
        tensors |= images(pipe.vae, 24, 40)
    save(folder, 77, rows, tensors)


def sd(folder, merges):
    words = clip_tokenizer(folder / "tokenizer", merges)
    ids = (words[BOS], words[EOS], words[EOS])
    width = dict(hidden_size=12, num_attention_heads=3, intermediate_size=40, num_hidden_layers=3, projection_dim=12)
    models = {
        "text_encoder": clip_encoder(CLIPTextModel, 1, words, ids, hidden_act="quick_gelu", **width),
        "vae": autoencoder(2, [8, 12, 16], sample_size=64),
    }
    stable_diffusion(folder, models, as_sd15)


def sd2(folder, merges):
    words = clip_tokenizer(folder / "tokenizer", merges, pad="!")
    # One layer less than the encoder was trained with: what SD 2 wants is in the config, not in the pipeline.
    width = dict(hidden_size=12, num_attention_heads=2, intermediate_size=48, num_hidden_layers=2, projection_dim=8)
    stable_diffusion(folder, {"text_encoder": clip_encoder(CLIPTextModel, 3, words, hidden_act="gelu", **width)})


def sdxl(folder, merges):
    words = clip_tokenizer_resaved(folder / "tokenizer", merges)
    clip_tokenizer_resaved(folder / "tokenizer_2", merges, pad="!")
    width = dict(hidden_size=8, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2, projection_dim=8)
    width_2 = dict(hidden_size=12, num_attention_heads=3, intermediate_size=48, num_hidden_layers=3, projection_dim=10)
    models = {
        "text_encoder": clip_encoder(CLIPTextModel, 4, words, hidden_act="quick_gelu", **width),
        "text_encoder_2": clip_encoder(CLIPTextModelWithProjection, 5, words, hidden_act="gelu", **width_2),
        "vae": autoencoder(6, [8, 8, 12, 16], sample_size=64, scaling_factor=0.13025, force_upcast=True),
    }
    absent = ["unet", "scheduler", "feature_extractor", "image_encoder"]
    pipe = written(folder, StableDiffusionXLPipeline, models, absent, force_zeros_for_empty_prompt=True)
    rows, inputs = tokenised(folder, pipe, CLIPTokenizerFast, 77)
    (ids, _), (ids_2, _) = inputs["tokenizer"], inputs["tokenizer_2"]
    encoded, encoded_2 = pipe.text_encoder(ids), pipe.text_encoder_2(ids_2)
    given, negative, pooled, negative_pooled = pipe.encode_prompt(RECORDED, device="cpu")
    _, empty, _, empty_pooled = pipe.encode_prompt(RECORDED[0], device="cpu", negative_prompt="")
    tensors = {
        "input_ids": ids,
        "last_hidden_state": encoded.last_hidden_state,
        "pooled": encoded.pooler_output,
        "input_ids_2": ids_2,
        "last_hidden_state_2": encoded_2.last_hidden_state,
        "pooled_2": pipe.text_encoder_2.text_model(ids_2).pooler_output,
        "text_embeds_2": encoded_2.text_embeds,
        "prompt_embeds": given,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": negative,
        "negative_pooled_prompt_embeds": negative_pooled,
        "empty_prompt_embeds": empty,
        "empty_pooled_prompt_embeds": empty_pooled,
    }
    save(folder, 77, rows, tensors | images(pipe.vae, 32, 48))


def pixart(folder, merges):
    t5_tokenizer(folder / "tokenizer", merges[:SMALL_MERGES])
    width = dict(d_model=20, d_kv=6, d_ff=44, num_heads=3, num_layers=3, vocab_size=640)
    gate = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    models = {
        "text_encoder": randomise(T5EncoderModel(T5Config(**width, **gate)), 7),
        "vae": autoencoder(8, [8, 16], layers_per_block=2, sample_size=64, scaling_factor=0.13025, force_upcast=True),
    }
    pipe = written(folder, PixArtSigmaPipeline, models, ["transformer", "scheduler"], shard=30_000)

    def prepare(text):
        return pipe._text_preprocessing(text, clean_caption=False)[0]

    rows, inputs = tokenised(folder, pipe, T5TokenizerFast, PIXART_TOKENS, prepare, masks=True)
    ids, mask = inputs["tokenizer"]
    given, given_mask, negative, negative_mask = pipe.encode_prompt(
        RECORDED, device="cpu", max_sequence_length=PIXART_TOKENS
    )
    long = pipe.tokenizer(prepare(LONG), padding="max_length", max_length=300, truncation=True, return_tensors="pt")
    long_embeds, long_mask, _, _ = pipe.encode_prompt(LONG, device="cpu")
    tensors = {
        "input_ids": ids,
        "last_hidden_state": pipe.text_encoder(ids, attention_mask=mask).last_hidden_state,
        "prompt_embeds": given,
        "prompt_attention_mask": given_mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask,
        "long.input_ids": long.input_ids,
        "long.prompt_embeds": long_embeds,
        "long.prompt_attention_mask": long_mask,
    }
    save(folder, PIXART_TOKENS, rows, tensors | images(pipe.vae, 12, 20))


PIPELINES = {"sd": sd, "sd2": sd2, "sdxl": sdxl, "pixart": pixart}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument(
        "--full-vocabulary", action="store_true", help="all of CLIP's 49408 tokens, not its first merges"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*PIPELINES])
    chosen = parser.parse_intermixed_args()
    if is_ftfy_available():
        parser.error("ftfy is installed: the slow CLIPTokenizer would clean its text with it")
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    merges = clip_merges(chosen.full_vocabulary)
    with torch.no_grad():
        for name in chosen.names:
            PIPELINES[name](chosen.out / name, merges)


if __name__ == "__main__":
    main()
