package kv

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

const checksumMember = `,"checksum":"`

// Encode returns value as a JSON object with the SHA-256 of the rest of itself
// as its last member, "checksum": what a person reads with `nats kv get` can be
// told from a rotten value.
func Encode(value any) ([]byte, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(data) < 3 || data[0] != '{' {
		return nil, fmt.Errorf("encode: a bucket's value is a JSON object with members, not %.40s", data)
	}
	sum := sha256.Sum256(data)
	data = append(data[:len(data)-1], checksumMember...)
	data = hex.AppendEncode(data, sum[:])
	return append(data, `"}`...), nil
}

// Decode checks and decodes what Encode made. It fails with ErrCorrupt.
func Decode[T any](data []byte) (T, error) {
	var v T
	plain, err := verify(data)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(plain, &v); err != nil {
		return v, fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	return v, nil
}

// verify returns what the checksum was made of, or ErrCorrupt.
func verify(data []byte) ([]byte, error) {
	at := len(data) - len(checksumMember) - 2*sha256.Size - 2
	if at < 1 || !bytes.HasPrefix(data[at:], []byte(checksumMember)) || !bytes.HasSuffix(data, []byte(`"}`)) {
		return nil, fmt.Errorf("%w: no checksum", ErrCorrupt)
	}
	plain := append(append(make([]byte, 0, at+1), data[:at]...), '}')
	sum := sha256.Sum256(plain)
	if hex.EncodeToString(sum[:]) != string(data[at+len(checksumMember):len(data)-2]) {
		return nil, fmt.Errorf("%w: checksum does not hold", ErrCorrupt)
	}
	return plain, nil
}
