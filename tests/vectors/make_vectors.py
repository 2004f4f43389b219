"""Write the vectors of `sipmix-v1` and of the key tree, with nothing of Taggant imported.

This is a second implementation, in plain Python integers and the standard library's hmac. The published
vectors are typed in: SipHash-2-4 from the reference implementation (github.com/veorq/SipHash, vectors.h,
key 00..0f, message 00..n-1), SplitMix64 from its reference C code (seed 1234567, first five outputs).

    python tests/vectors/make_vectors.py

The vectors never change. A test compares the files with what this writes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

M = (1 << 64) - 1
HERE = Path(__file__).parent

SIPHASH_PUBLISHED = {  # bytes of message: hexadecimal output, little-endian
    0: "310e0edd47db6f72",
    1: "fd67dc93c539f874",
    2: "5a4fa9d909806c0d",
    3: "2d7efbd796666785",
    4: "b7877127e09427cf",
    5: "8da699cd64557618",
    6: "cee3fe586e46c9cb",
    7: "37d1018bf50002ab",
    8: "6224939a79f5f593",
    9: "b0e4a90bdf82009e",
    10: "f3b9dd94c5bb5d7a",
    11: "a7ad6b22462fb3f4",
    12: "fbe50e86bc8f1e75",
    13: "903d84c02756ea14",
    14: "eef27a8e90ca23f7",
    15: "e545be4961ca29a1",
    16: "db9bc2577fcc2a3f",
    17: "9447be2cf5e99a69",
    18: "9cd38d96f0b3c14b",
    19: "bd6179a71dc96dbb",
    20: "98eea21af25cd6be",
    21: "c7673b2eb0cbf2d0",
    22: "883ea3e395675393",
    23: "c8ce5ccd8c030ca8",
    24: "94af49f6c650adb8",
    25: "eab8858ade92e1bc",
    26: "f315bb5bb835d817",
    27: "adcf6b0763612e2f",
    28: "a5c91da7acaa4dde",
    29: "716595876650a2a6",
    30: "28ef495c53a387ad",
    31: "42c341d8fa92d832",
    32: "ce7cf2722f512771",
    33: "e37859f94623f3a7",
    34: "381205bb1ab0e012",
    35: "ae97a10fd434e015",
    36: "b4a31508beff4d31",
    37: "81396229f0907902",
    38: "4d0cf49ee5d4dcca",
    39: "5c73336a76d8bf9a",
    40: "d0a704536ba93e0e",
    41: "925958fcd6420cad",
    42: "a915c29bc8067318",
    43: "952b79f3bc0aa6d4",
    44: "f21df2e41d4535f9",
    45: "87577519048f53a9",
    46: "10a56cf5dfcd9adb",
    47: "eb75095ccd986cd0",
    48: "51a9cb9ecba312e6",
    49: "96afadfc2ce666c7",
    50: "72fe52975a4364ee",
    51: "5a1645b276d592a1",
    52: "b274cb8ebf87870a",
    53: "6f9bb4203de7b381",
    54: "eaecb2a30b22a87f",
    55: "9924a43cc1315724",
    56: "bd838d3aafbf8db7",
    57: "0b1a2a3265d51aea",
    58: "135079a3231ce660",
    59: "932b2846e4d70666",
    60: "e1915f5cb1eca46c",
    61: "f325965ca16d629f",
    62: "575ff28e60381be5",
    63: "724506eb4c328a95",
}
SPLITMIX_PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def sip(key: bytes, message: bytes) -> int:
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rot(x: int, b: int) -> int:
        return ((x << b) | (x >> (64 - b))) & M

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & M
            v[1] = rot(v[1], 13) ^ v[0]
            v[0] = rot(v[0], 32)
            v[2] = (v[2] + v[3]) & M
            v[3] = rot(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & M
            v[3] = rot(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & M
            v[1] = rot(v[1], 17) ^ v[2]
            v[2] = rot(v[2], 32)

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for start in range(0, len(padded), 8):
        block = int.from_bytes(padded[start : start + 8], "little")
        v[3] ^= block
        rounds(2)
        v[0] ^= block
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def mix(seed: int, index: int) -> int:
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & M
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M
    return z ^ (z >> 31)


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and salt "taggant/1"."""
    prk = hmac.new(b"taggant/1", secret, hashlib.sha256).digest()
    out, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:length]


def prf_vectors() -> dict[str, object]:
    rows = []
    for h in range(9):
        for number in range(3):
            draw = hashlib.sha256(b"window %d %d" % (h, number)).digest() * 2
            key = hashlib.sha256(b"key %d %d" % (h, number)).digest()[:16]
            # The last of the three holds the extreme ids.
            window = [int.from_bytes(draw[4 * i : 4 * i + 4], "little") % 200_019 for i in range(h)]
            window = [2**32 - 1 - i for i in range(h)] if number == 2 else window
            tokens = [0, 1, 49_151, 128_255, 200_018, 2**32 - 1]
            message = b"".join(i.to_bytes(4, "little") for i in window)
            seed = sip(key, message)
            rows.append(
                {
                    "key": key.hex(),
                    "window": window,
                    "lane": sip(bytes(16), message) % 64,
                    "seed": str(seed),
                    "tokens": tokens,
                    "u": [str(mix(seed, t)) for t in tokens],
                    "green_64": [mix(seed, t) < 64 << 56 for t in tokens],
                }
            )
    return {"suite": "sipmix-v1", "siphash24": SIPHASH_PUBLISHED, "splitmix64": SPLITMIX_PUBLISHED, "uniform": rows}


def key_vectors() -> list[dict[str, object]]:
    vectors = []
    for root, activation, account_lanes, scope in (
        (bytes(range(32)), bytes(32), 16, "2026-q4"),
        (bytes(range(32, 64)), hashlib.sha256(b"a beacon's round").digest(), 0, "demo_1.a-b"),
    ):
        params = {
            "account_k": 128,
            "account_lanes": account_lanes,
            "fleet_k": 64,
            "special_ids": [0, 1, 2, 49_151],
            "suite": "sipmix-v1",
            "tokenizer": hashlib.sha256(b"a tokenizer").hexdigest(),
            "window": 2,
        }
        # RFC 8785 of integers, ASCII strings and lists of integers is sorted compact JSON.
        canonical = json.dumps(params, sort_keys=True, separators=(",", ":")).encode()
        fingerprint = hashlib.sha256(canonical).digest()
        scope_key = hkdf(root, b"scope\0" + scope.encode(), 32)
        seeds = [hkdf(scope_key, b"lane\0" + bytes([j]), 32) for j in range(64)]
        account_seed = hkdf(scope_key, b"accounts\0", 32)
        account_key = hkdf(account_seed, b"key\0" + activation, 32)

        def commit(kind: bytes, which: bytes, seed: bytes, scope: str = scope, mark: bytes = fingerprint) -> str:
            parts = (b"taggant/1/commit", scope.encode(), mark, kind, which, seed)
            return hashlib.sha256(b"".join(len(p).to_bytes(4, "little") + p for p in parts)).hexdigest()

        vectors.append(
            {
                "root": root.hex(),
                "scope": scope,
                "activation": activation.hex(),
                "params": params,
                "canonical": canonical.decode(),
                "fingerprint": fingerprint.hex(),
                "scope_key": scope_key.hex(),
                "lane_seeds": [seed.hex() for seed in seeds],
                "lane_keys": [hkdf(seed, b"key\0" + activation, 16).hex() for seed in seeds],
                "account_seed": account_seed.hex(),
                "account_key": account_key.hex(),
                "code_key": hkdf(account_key, b"code\0", 16).hex(),
                "code_words": {a: hkdf(account_key, b"account\0" + a.encode(), 512).hex() for a in ("a", "kundin-ä")},
                "commitments": [
                    *(commit(b"lane", bytes([j]), seed) for j, seed in enumerate(seeds)),
                    commit(b"accounts", b"", account_seed),
                ],
            }
        )
    return vectors


def main() -> None:
    for name, content in (("prf.json", prf_vectors()), ("keys.json", key_vectors())):
        (HERE / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
