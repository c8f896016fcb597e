package lab

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Bits and sizes of a record of a nats-server message block (server/filestore.go,
// writeMsgRecordLocked): length, sequence, time, length of the subject; the
// subject, headers, message; a hash.
const (
	headersBit   = 1 << 31 // of the length: headers follow the subject
	erasedBit    = 1 << 63 // of the sequence: erased in place
	tombstoneBit = 1 << 62 // of the sequence: this one was removed
	recordHeader = 22
	recordHash   = 8
)

// ReadStore reads the last message of each subject from the store of a stream
// whose server does not run: what one replica has, whatever the others have.
// dir is the stream's; prefix is cut off the subjects.
func ReadStore(dir, prefix string) (map[string]Entry, error) {
	blocks, err := filepath.Glob(filepath.Join(dir, "msgs", "*.blk"))
	if err != nil || len(blocks) == 0 {
		return nil, fmt.Errorf("read store %s: no blocks (%v)", dir, err)
	}
	type message struct{ subject, value, headers string }
	held := map[uint64]message{}
	removed := map[uint64]bool{}
	for _, path := range blocks {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for at := 0; at < len(data); {
			rest := data[at:]
			if len(rest) < recordHeader {
				return nil, fmt.Errorf("%s: half a record at %d", path, at)
			}
			length := binary.LittleEndian.Uint32(rest)
			seq := binary.LittleEndian.Uint64(rest[4:])
			subject := int(binary.LittleEndian.Uint16(rest[20:]))
			size := int(length &^ headersBit)
			if size < recordHeader+subject+recordHash || size > len(rest) {
				return nil, fmt.Errorf("%s: a record of %d bytes at %d of %d", path, size, at, len(data))
			}
			at += size
			body := rest[recordHeader+subject : size-recordHash]
			var headers []byte
			if length&headersBit != 0 {
				n := 4 + int(binary.LittleEndian.Uint32(body))
				if len(body) < 4 || n > len(body) {
					return nil, fmt.Errorf("%s: headers of %d bytes at %d", path, n, at-size)
				}
				headers, body = body[4:n], body[n:]
			}
			switch {
			case seq&tombstoneBit != 0:
				removed[seq&^tombstoneBit] = true
			case seq&erasedBit != 0 || subject == 0:
				removed[seq&^erasedBit] = true
			default:
				held[seq] = message{string(rest[recordHeader : recordHeader+subject]), string(body), string(headers)}
			}
		}
	}
	out := map[string]Entry{}
	for seq, m := range held {
		key := strings.TrimPrefix(m.subject, prefix)
		if removed[seq] || out[key].Seq > seq {
			continue
		}
		deleted := m.value == "" || strings.Contains(m.headers, "KV-Operation:")
		out[key] = Entry{Seq: seq, Deleted: deleted, Value: m.value}
	}
	return out, nil
}
