//! Decryption through the `sops` program.
