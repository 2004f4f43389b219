"""The provenance ledger (extra `ledger`): what a server served, to which account, chained into a Merkle log.

`writer.Ledger` takes records while a server serves, `reader.LedgerReader` signs and proves, `verify` and
`export` read a ledger as a whole. The tree is `watermark.merkle`, what is signed `watermark.checkpoint`.
"""
