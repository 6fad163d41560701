"""A decoder in plain Python, after SPEC.md alone; slow, and it shares no code with the package.

It checks what it needs to decode, not all that a reader must refuse.
"""

import struct
import zlib

DTYPE_BYTES = [0, 4, 2, 2, 8, 1, 1, 1, 2, 4, 8, 1, 2, 4, 8, 1, 8, 16]
FLOATS = {1, 2, 3, 4}
COMPLEX = {16, 17}
STREAMS = {
    1: ["values"],
    2: ["positions", "values"],
    3: ["codes", "codebook"],
    4: ["positions", "codes", "codebook"],
}


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        assert self.at + n <= len(self.data)
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self):
        return self.take(1)[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def rest(self):
        return self.take(len(self.data) - self.at)


class Bits:
    def __init__(self, data):
        self.word, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, n):
        assert n <= self.left
        value = self.word & ((1 << n) - 1)
        self.word >>= n
        self.left -= n
        return value

    def end(self):
        assert self.left < 8
        assert self.word == 0


class TableBits(Bits):
    """Bits whose end is not known: one byte more whenever they run out."""

    def __init__(self, cursor):
        self.cursor, self.word, self.left = cursor, 0, 0

    def take(self, n):
        while self.left < n:
            self.word |= self.cursor.u8() << self.left
            self.left += 8
        return super().take(n)


def ceil_log2(x):
    return max(x - 1, 0).bit_length()


def huffman_lengths(cursor):
    """Section 4.2: symbol -> length."""
    first = cursor.varint()
    span = cursor.varint()
    if span == 0:
        return {first: 0}
    bits = TableBits(cursor)
    last = min(16, max(1, span.bit_length()))
    lengths, symbol = {}, first
    while symbol <= first + span:
        if bits.take(1):
            if not bits.take(1):
                last += -1 if bits.take(1) else 1
            elif not bits.take(1):
                last = bits.take(4) + 1
            else:
                zeros = 0
                while not bits.take(1):
                    zeros += 1
                symbol += (1 << zeros) + bits.take(zeros)
                continue
        lengths[symbol] = last
        symbol += 1
    bits.end()
    assert sum(2.0**-n for n in lengths.values()) == 1
    return lengths


def huffman(cursor, n):
    lengths = huffman_lengths(cursor)
    if len(lengths) == 1:
        assert not cursor.rest()
        return list(lengths) * n
    words, word, previous = {}, -1, 0
    for symbol in sorted(lengths, key=lambda s: (lengths[s], s)):
        word = (word + 1) << (lengths[symbol] - previous)
        previous = lengths[symbol]
        words[previous, word] = symbol
    runs = 1 if n < 16384 else 8 * -(-n // 2**20)
    sizes = [cursor.varint() for _ in range(runs - 1)]
    symbols = []
    for j in range(runs):
        bits = Bits(cursor.take(sizes[j]) if j < runs - 1 else cursor.rest())
        for _ in range(n // runs + (j < n % runs)):
            length = word = 0
            while (length, word) not in words:
                word = word << 1 | bits.take(1)
                length += 1
            symbols.append(words[length, word])
        bits.end()
    return symbols


def rans_levels(cursor, span, m, p):
    """Section 4.3: the levels of span + 1 symbols."""
    bits = TableBits(cursor)

    def zeros():
        n = 0
        while not bits.take(1):
            n += 1
        return n

    levels, a = [], 16 << p
    while len(levels) <= span:
        fresh = not levels or levels[-1] == 0
        if levels and fresh:
            z = zeros()
            levels += [0] * ((1 << z) + bits.take(z) - 1)
        k = max(1, 3 * a // 32).bit_length() - 1
        x = (zeros() << k) + bits.take(k)
        a += x - a // 8
        if fresh:
            levels.append(x + 1)
        else:
            levels.append(levels[-1] + (-(x + 1) // 2 if x % 2 else x // 2))
        assert 0 <= levels[-1] <= (m - p + 1) << p
    bits.end()
    assert levels[0]
    assert levels[-1]
    return levels


def rans(cursor, n):
    first, span = cursor.varint(), cursor.varint()
    if span == 0:
        assert not cursor.rest()
        return [first] * n
    p, m = divmod(cursor.u8(), 16)
    m += 4
    levels = rans_levels(cursor, span, m, p)
    weights = []
    for level in levels:
        u = level - 1
        small = u < 2 << p
        weights.append(u if small else (2**p + u % 2**p) << ((u >> p) - 1))
    used = [i for i, level in enumerate(levels) if level]
    total, spare, sum_before = sum(weights[i] for i in used), 2**m - len(used), 0
    slots = []  # symbol, frequency, start
    for i in used:
        before = spare * sum_before // max(total, 1)
        sum_before += weights[i]
        f = 1 + spare * sum_before // max(total, 1) - before
        slots += [(first + i, f, len(slots))] * f
    assert len(slots) == 2**m
    blocks = []
    if n < 2**16:
        data = cursor.rest()
        size = len(data) if len(data) <= 8 else 5 + (len(data) - 5) % 4
        words = Bytes(data[:-size])
        blocks.append((n, [int.from_bytes(data[-size:], "little")], words))
    else:
        number = -(-n // 2**20)
        sizes = [cursor.varint() for _ in range(number - 1)]
        for b in range(number):
            states = list(struct.unpack("<8Q", cursor.take(64)))
            words = Bytes(cursor.take(4 * sizes[b]) if b < number - 1 else cursor.rest())
            blocks.append((n // number + (b < n % number), states, words))
    symbols = []
    for count, states, words in blocks:
        lanes = len(states)
        for i in range(count):
            x = states[i % lanes]
            symbol, f, start = slots[x % 2**m]
            symbols.append(symbol)
            x = f * (x >> m) + x % 2**m - start
            look = (i // lanes) % 2 or m > 15
            if look and x < 2**31 and (lanes == 8 or words.at < len(words.data)):
                x = x << 32 | struct.unpack("<I", words.take(4))[0]
            states[i % lanes] = x
        assert not words.rest()
        assert set(states) == {2**m if lanes == 1 else 2**31}
    return symbols


class Counter:
    """Section 4.4."""

    def __init__(self):
        self.q, self.m = 1 << 15, 0

    def learn(self, b):
        self.q += ((b << 16) - self.q) * (65536 // (self.m + 2)) >> 16
        self.q = min(max(self.q, 32), 65536 - 32)
        self.m = min(self.m + 1, 1023)


class Decisions:
    """Section 4.4."""

    def __init__(self, data):
        assert len(data) % 4 == 0
        self.digits, self.at = struct.unpack(f">{len(data) // 4}I", data), 0
        self.v, self.range = 0, 2**64 - 1
        self.shift()
        self.shift()

    def shift(self):
        more = self.at < len(self.digits)
        self.v = self.v << 32 | (self.digits[self.at] if more else 0)
        self.at += 1

    def take(self, p):
        t = (self.range >> 16) * p
        one = self.v < t
        if one:
            self.range = t
        else:
            self.v -= t
            self.range -= t
        if self.range < 2**32:
            self.range <<= 32
            self.shift()
        return int(one)

    def end(self):
        assert self.at == len(self.digits) + 1
        last = self.digits[-1] << 32
        low = (last - self.v) % 2**64
        assert (low + -low % 2**32) % 2**64 == last


def logistic():
    factorials = [1, 1, 2, 6, 24, 120, 720, 5040, 40320]
    factor = sum(2**60 // (f * 256**i) for i, f in enumerate(factorials))
    table, e = {}, 2**60
    for k in range(2048):
        table[k] = 2**16 * e // (2**60 + e)
        table[-k] = 2**16 - table[k]
        e = e * factor >> 60
    table[0] = 2**15
    squash = {k: min(max(v, 32), 2**16 - 32) for k, v in table.items()}
    stretch, k = [], -2047
    for i in range(4096):
        while k < 2047 and table[k] < 16 * i + 8:
            k += 1
        stretch.append(k)
    return squash, stretch


SQUASH, STRETCH = logistic()


class Mixed:
    """Section 3.4: decisions with seven contexts each."""

    def __init__(self, data):
        self.decisions, self.counters, self.weights = Decisions(data), {}, {}

    def take(self, contexts, which=0):
        w = self.weights.setdefault(which, [14000] * 7)
        counters = [self.counters.setdefault((j, c), Counter()) for j, c in enumerate(contexts)]
        s = [STRETCH[counter.q >> 4] for counter in counters]
        d = sum(a * b for a, b in zip(w, s, strict=True)) >> 16
        p = SQUASH[min(max(d, -2047), 2047)]
        bit = self.decisions.take(p)
        e = 6 * ((bit << 16) - p)
        for j in range(7):
            w[j] += (s[j] * e + 2**17) >> 18
            counters[j].learn(bit)
        return bit


def share(a, n, m):
    return (2 * a + 1) * m // (2 * n + 2)


def rows_columns_places(shape):
    elements = 1
    for d in shape:
        elements *= d
    if len(shape) < 2:
        return 1, elements, 1
    columns = elements // shape[0]
    return shape[0], columns, columns // shape[1]


def kept_of(body, shape):
    rows, columns, places = rows_columns_places(shape)
    mixed, kept = Mixed(body), set()
    for r in range(rows):
        h = 0
        for c in range(columns):
            k, start = c % places, c - c % places
            small = min(k, 31)
            in_row = sum((r, i) in kept for i in range(c))
            in_column = sum((i, c) in kept for i in range(r))
            in_channel = sum((i, start + j) in kept for i in range(r) for j in range(places))
            g = min(15, sum((r, i) in kept for i in range(start, c)))
            a = share(in_row, c, 24)
            b = share(in_column, r, 12)
            d = share(in_channel, r * places, 12)
            u1, u2, v = (r - 1, c) in kept, (r - 2, c) in kept, (r - 1, c + 1) in kept
            before = (r, c - places) in kept
            contexts = [
                (b, small),
                (a, h % 8),
                h,
                (d, a),
                (u2, u1, v, h % 2, before, small),
                (g, small, d),
                (a, b, g),
            ]
            bit = mixed.take(contexts)
            h = (2 * h + bit) % 1024
            if bit:
                kept.add((r, c))
    mixed.decisions.end()
    return sorted(r * columns + c for r, c in kept)


def ordered(items, dtype):
    """Codes in the order of ranks, and the number of items with the sign bit set."""
    if dtype in COMPLEX:
        return list(range(len(items))), 0
    words = [int.from_bytes(item, "little") for item in items]
    top = 1 << (8 * DTYPE_BYTES[dtype] - 1)
    negative = sum(w >= top for w in words)
    if dtype in {7, 8, 9, 10}:
        keys = [w - 2 * top if w >= top else w for w in words]
    elif dtype in {1, 2, 3, 4, 5, 6}:
        keys = [top - 1 - w if w >= top else w for w in words]
    else:
        keys, negative = words, 0
    return sorted(range(len(items)), key=lambda i: (keys[i], i)), negative


def codes_of(body, shape, positions, items, dtype):
    rows, columns, places = rows_columns_places(shape)
    order, zero = ordered(items, dtype)
    width = ceil_log2(len(items))
    kept = set(range(rows * columns)) if positions is None else set(positions)
    mixed, codes, last, above = Mixed(body), [], zero, {}
    n, m = 2 ** max(width, 3), 8
    xs, ys = {}, {}
    for r in range(rows):
        x, y = 8 * n // m, 8
        in_row = sum(r * columns + c in kept for c in range(columns))
        for c in range(columns):
            if r * columns + c not in kept:
                continue
            k, channel = c % places, c // places
            beside = k > 0 and r * columns + c - 1 in kept
            if places == 1:
                seventh = 1
            else:
                seventh = 16 * last // 2**width if beside else 16
            near = xs.get(channel, 0) + 4 * n // m
            contexts = [
                0,
                min(31, 2**7 * x // (2**width * y)),
                min(31, 2**7 * near // (2**width * (ys.get(channel, 0) + 4))),
                abs(last - zero).bit_length(),
                16 * above[c] // 2**width if c in above else 16,
                share(in_row, columns, 16),
                seventh,
            ]
            node = 1
            for i in reversed(range(width)):
                node = 2 * node + mixed.take([(context, node) for context in contexts], i)
            rank = node - 2**width
            codes.append(order[rank])
            size = abs(rank - zero)
            n, m, x, y = n + size, m + 1, x + size, y + 1
            xs[channel] = xs.get(channel, 0) + size
            ys[channel] = ys.get(channel, 0) + 1
            if m == 2**16:
                n, m = n // 2, m // 2
            last = above[c] = rank
    mixed.decisions.end()
    return codes


def adaptive(data, n, alphabet):
    """Section 4.4."""
    width = ceil_log2(alphabet)
    if not width:
        assert not data
        return [0] * n
    decisions, counters, symbols = Decisions(data), {}, []
    for _ in range(n):
        node = 1
        for _ in range(width):
            counter = counters.setdefault(node, Counter())
            bit = decisions.take(counter.q)
            counter.learn(bit)
            node = 2 * node + bit
        symbols.append(node - 2**width)
    decisions.end()
    return symbols


def symbols_of(coder, cursor, n, alphabet):
    """Section 4."""
    if coder == 2:
        return huffman(cursor, n)
    if coder == 3:
        return rans(cursor, n)
    if coder == 4:
        return adaptive(cursor.rest(), n, alphabet)
    assert coder == 1
    bits = Bits(cursor.rest())
    symbols = [bits.take(ceil_log2(alphabet)) for _ in range(n)]
    bits.end()
    return symbols


def positions_of(method, body, n, elements):
    """Section 3.2."""
    layout, coder = divmod(method, 16)
    cursor = Bytes(body)
    gaps = []
    if layout == 0:
        width = cursor.u8()
        bits, gap = Bits(cursor.rest()), 0
        while len(gaps) < n:
            field = bits.take(width)
            gap += field
            if field != (1 << width) - 1:
                gaps.append(gap)
                gap = 0
        bits.end()
    elif layout == 1:
        top, direct = divmod(cursor.u8(), 16)
        raw = Bits(cursor.take(cursor.varint()))
        for token in symbols_of(coder, cursor, n, 256):
            if token < 1 << direct:
                gaps.append(token)
                continue
            r = token - (1 << direct)
            low = (r >> top) + direct - top
            gaps.append(((1 << top) + r % (1 << top) << low) + raw.take(low))
        raw.end()
    else:
        assert layout == 2
        mask = symbols_of(coder, cursor, (elements + 7) // 8, 256)
        return [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]
    positions, last = [], -1
    for gap in gaps:
        last += gap + 1
        positions.append(last)
    return positions


def values_of(method, body, n, dtype):
    """Section 3.3: the items as one bytes object each."""
    size = DTYPE_BYTES[dtype]
    layout, coder = divmod(method, 16)
    if layout == 2:
        return [body] * n
    if layout == 0:
        return [body[i : i + size] for i in range(0, n * size, size)]
    cursor = Bytes(body)
    if layout == 3:
        keys = positions_of(16 + coder, cursor.take(cursor.varint()), n, 2 ** (8 * size))
        top, items, p = 1 << (8 * size - 1), [], 0
        for move in symbols_of(coder, cursor, n, n):
            p = (p + move) % len(keys)
            key = keys.pop(p)
            if dtype in FLOATS | {5, 6}:
                key = key - top if key >= top else 2 * top - 1 - key
            elif dtype in {7, 8, 9, 10}:
                key = (key + top) % (2 * top)
            items.append(key.to_bytes(size, "little"))
        return items
    parts = 2 if dtype in COMPLEX else 1
    width, count = size // parts, n * parts
    planes = []
    for _ in range(width):
        mode = cursor.u8()
        if mode == 0:
            planes.append(cursor.take(count))
        elif mode == 1:
            planes.append(symbols_of(coder, Bytes(cursor.take(cursor.varint())), count, 256))
        else:
            assert mode == 2
            planes.append(cursor.take(1) * count)
    assert not cursor.rest()
    words = []
    for plane_bytes in zip(*planes, strict=True):
        word = int.from_bytes(bytes(plane_bytes), "big")
        if dtype in COMPLEX or dtype in FLOATS:
            word = word >> 1 | (word & 1) << (8 * width - 1)
        words.append(word.to_bytes(width, "little"))
    return [b"".join(words[i : i + parts]) for i in range(0, count, parts)]


def tensor_of(entry, chunk, shape):
    """Sections 2.2 and 3: the dense tensor as bytes."""
    kind, dtype, elements, kept, levels, streams = entry
    parts, bodies, at = {}, {}, 0
    for name, (method, length) in zip(STREAMS[kind], streams, strict=True):
        bodies[name] = method, chunk[at : at + length]
        at += length
    for name in sorted(bodies, key="codes".__eq__):  # codes last
        method, body = bodies[name]
        if name == "positions" and method == 0x34:
            parts[name] = kept_of(body, shape)
        elif name == "codes" and method == 0x14:
            parts[name] = codes_of(body, shape, parts.get("positions"), parts["codebook"], dtype)
        elif name == "positions":
            parts[name] = positions_of(method, body, kept, elements) if kept else []
        elif name == "codes":
            parts[name] = symbols_of(method % 16, Bytes(body), kept, levels) if kept else []
        else:
            n = levels if name == "codebook" else kept
            parts[name] = values_of(method, body, n, dtype) if n else []
    values = parts.get("values")
    if values is None:
        values = [parts["codebook"][code] for code in parts["codes"]]
    if "positions" not in parts:
        return b"".join(values)
    dense = [bytes(DTYPE_BYTES[dtype])] * elements
    for position, value in zip(parts["positions"], values, strict=True):
        dense[position] = value
    return b"".join(dense)


class Names:
    def __init__(self):
        self.previous, self.rests = b"", []

    def read(self, cursor):
        shared = cursor.varint()
        which = cursor.varint()
        if which:
            rest = self.rests[which - 1]
        else:
            rest = cursor.take(cursor.varint())
            self.rests.append(rest)
        self.previous = self.previous[:shared] + rest
        return self.previous.decode("utf-8")


def read_entry(cursor):
    kind_and_dims, dtype = cursor.u8(), cursor.u8()
    kind, dims = kind_and_dims % 16, kind_and_dims // 16
    shape = tuple(cursor.varint() for _ in range(dims))
    elements = 1
    for d in shape:
        elements *= d
    kept = cursor.varint() if kind in (2, 4) else elements
    levels = cursor.varint() if kind in (3, 4) else 0
    streams = [(cursor.u8(), cursor.varint()) for _ in STREAMS[kind]]
    crc = struct.unpack("<I", cursor.take(4))[0]
    return shape, crc, (kind, dtype, elements, kept, levels, streams)


def read(data):
    """Sections 1 and 2: the dense bytes and shape of each tensor by name, and the aliases."""
    assert data[:9] == b"\x89ESP\r\n\x1a\n\x01"
    assert data[-4:] == b"\x89esp"
    length, crc = struct.unpack("<II", data[-12:-4])
    directory = data[len(data) - 12 - length : -12]
    assert crc == zlib.crc32(data[:9] + directory + data[-12:-8])
    cursor, names = Bytes(directory), Names()
    assert cursor.varint() == 0  # features
    tensors, order, aliases, offset = {}, [], {}, 9
    for _ in range(cursor.varint()):
        name = names.read(cursor)
        shape, crc, entry = read_entry(cursor)
        size = sum(n for _, n in entry[-1])
        chunk = data[offset : offset + size]
        offset += size
        assert zlib.crc32(chunk) == crc
        tensors[name] = shape, tensor_of(entry, chunk, shape)
        order.append(name)
    assert offset == len(data) - 12 - length
    while cursor.at < len(directory):
        section = cursor.varint()
        payload = Bytes(cursor.take(cursor.varint()))
        if section == 1:
            for _ in range(payload.varint()):
                alias = names.read(payload)
                aliases[alias] = order[payload.varint()]
    return tensors, aliases
