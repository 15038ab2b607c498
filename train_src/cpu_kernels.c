/* What lies between a training step's large products, for x86 processors that multiply bf16 (AVX-512 BF16).
 *
 * cpu_kernels.py compiles this where a job runs and says what each function computes. PyTorch passes over memory for
 * each operation; here numbers are read once, computed with in fp32 and written once. All sums are formed in one order,
 * whatever the number of threads, so that a step gives the same bits again.
 *
 * A processor multiplies bf16 by pairs: a 32-bit lane holds two neighbours of the summed axis. "Paired" rows are
 * matrices (pairs, width) of such lanes.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define QUERIES 32 /* of attention at once; even. A document's last ones see up to so many keys in vain */
#define ROWS 4
#define VECTORS 4
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

INLINE __m512 spread(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

INLINE __m256i rounded(__m512 numbers) { return (__m256i)_mm512_cvtneps_pbh(numbers); }

INLINE __m512 load(const bf16 *from) { return spread(_mm256_loadu_si256((const __m256i *)from)); }

INLINE void store(bf16 *to, __m512 numbers) { _mm256_storeu_si256((__m256i *)to, rounded(numbers)); }

INLINE __m512bh pair(const bf16 *from) {
    int32_t both;
    memcpy(&both, from, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

INLINE __m512bh pairs_at(const bf16 *from) { return (__m512bh)_mm512_loadu_si512(from); }

/* Two rows' numbers as lanes: `even` in the low half of each. */
INLINE __m512i paired(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

/* exp, within 2e-7 of the true one; beyond 89 infinity. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.0f)), _mm512_set1_ps(89.0f));
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest); /* ln 2 in two parts */
    __m512 sum = _mm512_set1_ps(1.0f / 720.0f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 120.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 24.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 6.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

INLINE __m512 sigmoid(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 divisor = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    return _mm512_div_ps(one, divisor);
}

static long up_to_lanes(long count) { return (count + LANES - 1) / LANES * LANES; }

static void *reserve(long bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        abort(); /* as a Python process ends where the system has no memory left */
    return memory;
}

/* ---- norms ---- */

void rms_norm(const bf16 *x, const bf16 *weight, bf16 *y, float *factors, long rows, long size, float eps, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const bf16 *own = x + row * size;
        __m512 squares = _mm512_setzero_ps();
        for (long at = 0; at < size; at += LANES) {
            __m512 numbers = load(own + at);
            squares = _mm512_fmadd_ps(numbers, numbers, squares);
        }
        float factor = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)size + eps);
        __m512 all = _mm512_set1_ps(factor);
        factors[row] = factor;
        for (long at = 0; at < size; at += LANES) {
            __m512 normed = spread(rounded(_mm512_mul_ps(load(own + at), all)));
            store(y + row * size + at, _mm512_mul_ps(normed, load(weight + at)));
        }
    }
}

void rms_norm_backward(
    const bf16 *dy, const bf16 *x, const bf16 *weight, const float *factors, bf16 *dx, long rows, long size, int threads
) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const bf16 *own = x + row * size, *change = dy + row * size;
        __m512 sums = _mm512_setzero_ps();
        for (long at = 0; at < size; at += LANES) {
            __m512 scaled = _mm512_mul_ps(load(change + at), load(weight + at));
            sums = _mm512_fmadd_ps(scaled, load(own + at), sums);
        }
        float factor = factors[row];
        __m512 all = _mm512_set1_ps(factor);
        __m512 common = _mm512_set1_ps(-_mm512_reduce_add_ps(sums) * factor * factor * factor / (float)size);
        for (long at = 0; at < size; at += LANES) {
            __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(load(change + at), load(weight + at)), all);
            store(dx + row * size + at, _mm512_fmadd_ps(load(own + at), common, scaled));
        }
    }
}

/* ---- rotary positions ---- */

void rotate(
    const bf16 *x, long token, long head, const bf16 *cosines, const bf16 *sines, bf16 *y, long tokens, long heads,
    long size, float direction, int threads
) {
    long half = size / 2;
#pragma omp parallel for num_threads(threads)
    for (long place = 0; place < tokens; place++) {
        const bf16 *cosine = cosines + place * size, *sine = sines + place * size;
        for (long number = 0; number < heads; number++) {
            const bf16 *from = x + place * token + number * head;
            bf16 *to = y + (place * heads + number) * size;
            for (long at = 0; at < half; at += LANES) {
                __m512 low = load(from + at), high = load(from + half + at), way = _mm512_set1_ps(direction);
                __m512 turn_low = _mm512_mul_ps(load(sine + at), way);
                __m512 turn_high = _mm512_mul_ps(load(sine + half + at), way);
                store(to + at, _mm512_fnmadd_ps(high, turn_low, _mm512_mul_ps(low, load(cosine + at))));
                store(to + half + at, _mm512_fmadd_ps(low, turn_high, _mm512_mul_ps(high, load(cosine + half + at))));
            }
        }
    }
}

/* ---- products ---- */

/* 16 rows of 16 lanes as their columns. */
INLINE void turn(__m512i *rows) {
    __m512i other[16];
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        other[i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0x88);
        other[4 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0x88);
        other[8 + i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0xdd);
        other[12 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_i32x4(other[i], other[4 + i], 0x88);
        rows[8 + i] = _mm512_shuffle_i32x4(other[i], other[4 + i], 0xdd);
        rows[4 + i] = _mm512_shuffle_i32x4(other[8 + i], other[12 + i], 0x88);
        rows[12 + i] = _mm512_shuffle_i32x4(other[8 + i], other[12 + i], 0xdd);
    }
}

/* Rows of a matrix that may lie in two stretches: the first `prefix` at `first`, the others from `next` on. */
typedef struct {
    const bf16 *first, *next;
    long prefix, count, stride;
} Rows;

INLINE const bf16 *row_at(const Rows *rows, long number) {
    return number < rows->prefix ? rows->first + number * rows->stride : rows->next + (number - rows->prefix) * rows->stride;
}

/* (count, size) -> paired along size, (size / 2, width), zeros beyond count; size is a multiple of 16. */
static void pack_turned(bf16 *packed, const Rows *rows, long size, long width) {
    for (long start = 0; start < width; start += LANES) {
        for (long at = 0; at < size / 2; at += LANES) {
            __mmask16 some = (__mmask16)(size / 2 - at >= LANES ? 0xffff : (1 << (size / 2 - at)) - 1);
            __m512i lanes[LANES];
            for (int i = 0; i < LANES; i++)
                lanes[i] = start + i < rows->count ? _mm512_maskz_loadu_epi32(some, row_at(rows, start + i) + 2 * at)
                                                   : _mm512_setzero_si512();
            turn(lanes);
            for (int i = 0; i < LANES && at + i < size / 2; i++)
                _mm512_storeu_si512(packed + 2 * ((at + i) * width + start), lanes[i]);
        }
    }
}

/* (count, size) -> paired along count, (width / 2, size), zeros beyond count; width is even, size a multiple of 16. */
static void pack_paired(bf16 *packed, const Rows *rows, long size, long width) {
    for (long number = 0; number < width; number += 2)
        for (long at = 0; at < size; at += LANES) {
            __m256i none = _mm256_setzero_si256();
            __m256i even = number < rows->count ? _mm256_loadu_si256((const __m256i *)(row_at(rows, number) + at)) : none;
            __m256i odd =
                number + 1 < rows->count ? _mm256_loadu_si256((const __m256i *)(row_at(rows, number + 1) + at)) : none;
            _mm512_storeu_si512(packed + number * size + 2 * at, paired(even, odd));
        }
}

/* sums (m, n vectors) += a (m rows) by paired b (pairs, width lanes); a's strides in numbers. */
INLINE void multiply(
    const int m, const int n, __m512 sums[][VECTORS], const bf16 *a, long row, long step, const bf16 *b, long width,
    long pairs
) {
    for (long at = 0; at < pairs; at++) {
        __m512bh columns[VECTORS];
        for (int j = 0; j < n; j++)
            columns[j] = pairs_at(b + 2 * (at * width + LANES * j));
        for (int i = 0; i < m; i++) {
            __m512bh own = pair(a + i * row + at * step);
            for (int j = 0; j < n; j++)
                sums[i][j] = _mm512_dpbf16_ps(sums[i][j], columns[j], own);
        }
    }
}

INLINE void multiply_tile(
    const int m, const int n, const bf16 *a, long row, long step, const bf16 *b, long width, long pairs, float *c,
    long ldc, int adds
) {
    __m512 sums[ROWS][VECTORS];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            sums[i][j] = adds ? _mm512_loadu_ps(c + i * ldc + LANES * j) : _mm512_setzero_ps();
    multiply(m, n, sums, a, row, step, b, width, pairs);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            _mm512_storeu_ps(c + i * ldc + LANES * j, sums[i][j]);
}

/* c (rows, columns) = or += a by paired b; columns is a multiple of 16. */
static void product(
    const bf16 *a, long row, long step, const bf16 *b, long width, long pairs, float *c, long ldc, long rows,
    long columns, int adds
) {
    for (long at = 0; at < columns; at += LANES * VECTORS) {
        long vectors = (columns - at) / LANES;
        const bf16 *own = b + 2 * at;
        for (long i = 0; i < rows;) {
            const bf16 *from = a + i * row;
            float *to = c + i * ldc + at;
#define TILE(m)                                                                     \
    switch (vectors) {                                                              \
    case 1: multiply_tile(m, 1, from, row, step, own, width, pairs, to, ldc, adds); break; \
    case 2: multiply_tile(m, 2, from, row, step, own, width, pairs, to, ldc, adds); break; \
    case 3: multiply_tile(m, 3, from, row, step, own, width, pairs, to, ldc, adds); break; \
    default: multiply_tile(m, 4, from, row, step, own, width, pairs, to, ldc, adds);       \
    }
            if (rows - i >= ROWS) {
                TILE(ROWS)
                i += ROWS;
            } else {
                TILE(1)
                i += 1;
            }
        }
    }
}

/* ---- attention ---- */

/* Of tokens (heads, tokens, size) whose last axis is contiguous. */
typedef struct {
    const bf16 *at;
    long token, head;
} Heads;

typedef struct {
    const long *ends; /* the first is that of the shared prefix, where there is one */
    long count, shared;
} Documents;

typedef struct {
    long first, count, prefix, keys, width;
} Document;

static Document document_at(const Documents *all, long number) {
    Document own;
    own.first = number ? all->ends[number - 1] : 0;
    own.count = all->ends[number] - own.first;
    own.prefix = number ? all->shared : 0;
    own.keys = own.prefix + own.count;
    own.width = up_to_lanes(own.keys);
    return own;
}

static long longest(const Documents *all) {
    long most = 0;
    for (long number = 0; number < all->count; number++) {
        Document own = document_at(all, number);
        most = own.width > most ? own.width : most;
    }
    return most;
}

static Rows keys_of(const Heads *heads, long head, const Document *own) {
    const bf16 *first = heads->at + head * heads->head;
    return (Rows){first, first + own->first * heads->token, own->prefix, own->keys, heads->token};
}

/* Weights, not divided by their sum, of one query's scores; returns their sum and what was subtracted from the scores. */
static float soften(const float *scores, bf16 *weights, long seen, long width, float scale, float *largest) {
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps(), scales = _mm512_set1_ps(scale);
    long whole = seen / LANES * LANES;
    __mmask16 rest = (__mmask16)((1 << (seen - whole)) - 1);
    for (long at = 0; at < whole; at += LANES)
        most = _mm512_max_ps(most, _mm512_loadu_ps(scores + at));
    most = _mm512_mask_max_ps(most, rest, most, _mm512_maskz_loadu_ps(rest, scores + whole));
    *largest = _mm512_reduce_max_ps(most) * scale;
    most = _mm512_set1_ps(*largest);
    for (long at = 0; at < width; at += LANES) {
        __mmask16 some = (__mmask16)(at < whole ? 0xffff : at == whole ? rest : 0);
        __m512 weight =
            _mm512_maskz_mov_ps(some, exponential(_mm512_fmsub_ps(_mm512_loadu_ps(scores + at), scales, most)));
        total = _mm512_add_ps(total, weight);
        store(weights + at, weight);
    }
    return _mm512_reduce_add_ps(total);
}

void attend(
    const bf16 *query, long q_token, long q_head, const bf16 *key, long k_token, long k_head, const bf16 *value,
    long v_token, long v_head, bf16 *output, float *logs, const long *ends, long documents, long shared, long heads,
    long key_heads, long size, long tokens, float scale, int threads
) {
    Documents packed = {ends, documents, shared};
    Heads keys = {key, k_token, k_head}, values = {value, v_token, v_head};
    long most = longest(&packed), group = heads / key_heads;
#pragma omp parallel num_threads(threads)
    {
        bf16 *turned = reserve(2 * most * size), *rows = reserve(2 * most * size), *weights = reserve(2 * most * QUERIES);
        float *scores = reserve(4 * most * QUERIES), *found = reserve(4 * size * QUERIES);
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < documents * key_heads; item++) {
            Document own = document_at(&packed, item / key_heads);
            Rows key_rows = keys_of(&keys, item % key_heads, &own), value_rows = keys_of(&values, item % key_heads, &own);
            pack_turned(turned, &key_rows, size, own.width);
            pack_paired(rows, &value_rows, size, own.width);
            for (long head = item % key_heads * group; head < (item % key_heads + 1) * group; head++)
                for (long start = 0; start < own.count; start += QUERIES) {
                    long count = own.count - start < QUERIES ? own.count - start : QUERIES;
                    long width = up_to_lanes(own.prefix + start + count), first = own.first + start;
                    const bf16 *from = query + head * q_head + first * q_token;
                    float sums[QUERIES], largest;
                    product(from, q_token, 2, turned, own.width, size / 2, scores, most, count, width, 0);
                    for (long i = 0; i < count; i++) {
                        long seen = own.prefix + start + i + 1;
                        sums[i] = soften(scores + i * most, weights + i * most, seen, width, scale, &largest);
                        logs[head * tokens + first + i] = largest + logf(sums[i]);
                    }
                    product(weights, most, 2, rows, size, width / 2, found, size, count, size, 0);
                    for (long i = 0; i < count; i++) {
                        __m512 share = _mm512_set1_ps(1.0f / sums[i]);
                        for (long at = 0; at < size; at += LANES)
                            store(
                                output + ((first + i) * heads + head) * size + at,
                                _mm512_mul_ps(_mm512_loadu_ps(found + i * size + at), share)
                            );
                    }
                }
        }
        free(turned), free(rows), free(weights), free(scores), free(found);
    }
}

/* Of one query: its weights, and the scores' gradients times the scale. */
typedef struct {
    const float *scores, *changes;
    float log, common;
    long seen;
} Query;

INLINE void soften_backward(const Query *query, long at, float scale, __m256i *weights, __m256i *changes) {
    __mmask16 some = (__mmask16)(query->seen - at >= LANES ? 0xffff : query->seen > at ? (1 << (query->seen - at)) - 1 : 0);
    __m512 scores = _mm512_loadu_ps(query->scores + at), scales = _mm512_set1_ps(scale);
    __m512 weight = exponential(_mm512_fmsub_ps(scores, scales, _mm512_set1_ps(query->log)));
    weight = _mm512_maskz_mov_ps(some, weight);
    __m512 change = _mm512_sub_ps(_mm512_loadu_ps(query->changes + at), _mm512_set1_ps(query->common));
    *weights = rounded(weight);
    *changes = rounded(_mm512_mul_ps(_mm512_mul_ps(change, weight), scales));
}

static float dot(const bf16 *one, const bf16 *other, long size) {
    __m512 sums = _mm512_setzero_ps();
    for (long at = 0; at < size; at += LANES)
        sums = _mm512_fmadd_ps(load(one + at), load(other + at), sums);
    return _mm512_reduce_add_ps(sums);
}

static void write_rows(const float *from, bf16 *to, long stride, long count, long size) {
    for (long i = 0; i < count; i++)
        for (long at = 0; at < size; at += LANES)
            store(to + i * stride + at, _mm512_loadu_ps(from + i * size + at));
}

void attend_backward(
    const bf16 *query, long q_token, long q_head, const bf16 *key, long k_token, long k_head, const bf16 *value,
    long v_token, long v_head, const bf16 *output, const float *logs, const bf16 *d_output, bf16 *d_query, bf16 *d_key,
    bf16 *d_value, const long *ends, long documents, long shared, long heads, long key_heads, long size, long tokens,
    float scale, int threads
) {
    Documents packed = {ends, documents, shared};
    Heads keys = {key, k_token, k_head}, values = {value, v_token, v_head};
    long most = longest(&packed), group = heads / key_heads, all = heads * size, part = shared * size;
    /* Of the prefix: what each document adds to the gradients of its keys and of its values. */
    float *prefixes = reserve(4 * (documents * key_heads * 2 * part + LANES));
#pragma omp parallel num_threads(threads)
    {
        bf16 *turned_keys = reserve(2 * most * size), *turned_values = reserve(2 * most * size);
        bf16 *paired_keys = reserve(2 * most * size), *changes = reserve(2 * most * QUERIES);
        bf16 *paired_weights = reserve(2 * most * QUERIES), *paired_changes = reserve(2 * most * QUERIES);
        bf16 *paired_queries = reserve(2 * size * QUERIES), *paired_outputs = reserve(2 * size * QUERIES);
        float *scores = reserve(4 * most * QUERIES), *d_weights = reserve(4 * most * QUERIES);
        float *found = reserve(4 * size * QUERIES), *d_keys = reserve(4 * most * size), *d_values = reserve(4 * most * size);
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < documents * key_heads; item++) {
            Document own = document_at(&packed, item / key_heads);
            long key_head = item % key_heads;
            Rows key_rows = keys_of(&keys, key_head, &own), value_rows = keys_of(&values, key_head, &own);
            pack_turned(turned_keys, &key_rows, size, own.width);
            pack_turned(turned_values, &value_rows, size, own.width);
            pack_paired(paired_keys, &key_rows, size, own.width);
            memset(d_keys, 0, 4 * own.width * size);
            memset(d_values, 0, 4 * own.width * size);
            for (long head = key_head * group; head < (key_head + 1) * group; head++)
                for (long start = 0; start < own.count; start += QUERIES) {
                    long count = own.count - start < QUERIES ? own.count - start : QUERIES, even = (count + 1) / 2 * 2;
                    long width = up_to_lanes(own.prefix + start + count), first = own.first + start;
                    const bf16 *from = query + head * q_head + first * q_token;
                    const bf16 *gradient = d_output + first * all + head * size;
                    Rows query_rows = {from, from, 0, count, q_token}, output_rows = {gradient, gradient, 0, count, all};
                    pack_paired(paired_queries, &query_rows, size, even);
                    pack_paired(paired_outputs, &output_rows, size, even);
                    product(from, q_token, 2, turned_keys, own.width, size / 2, scores, most, count, width, 0);
                    product(gradient, all, 2, turned_values, own.width, size / 2, d_weights, most, count, width, 0);
                    for (long i = 0; i < even; i += 2) {
                        Query both[2];
                        for (long j = 0; j < 2; j++) {
                            /* One beyond the last sees nothing. */
                            long is_real = i + j < count, number = is_real ? i + j : i, place = first + number;
                            const bf16 *result = output + place * all + head * size;
                            both[j] = (Query){
                                scores + number * most,
                                d_weights + number * most,
                                logs[head * tokens + place],
                                dot(result, gradient + number * all, size),
                                is_real ? own.prefix + start + number + 1 : 0,
                            };
                        }
                        for (long at = 0; at < width; at += LANES) {
                            __m256i weight[2], change[2];
                            for (long j = 0; j < 2; j++) {
                                soften_backward(&both[j], at, scale, &weight[j], &change[j]);
                                _mm256_storeu_si256((__m256i *)(changes + (i + j) * most + at), change[j]);
                            }
                            _mm512_storeu_si512(paired_weights + i * most + 2 * at, paired(weight[0], weight[1]));
                            _mm512_storeu_si512(paired_changes + i * most + 2 * at, paired(change[0], change[1]));
                        }
                    }
                    product(changes, most, 2, paired_keys, size, width / 2, found, size, count, size, 0);
                    write_rows(found, d_query + first * all + head * size, all, count, size);
                    product(paired_weights, 2, 2 * most, paired_outputs, size, even / 2, d_values, size, width, size, 1);
                    product(paired_changes, 2, 2 * most, paired_queries, size, even / 2, d_keys, size, width, size, 1);
                }
            long at_prefix = item / key_heads || !shared ? own.prefix : own.count; /* all of the prefix's own rows */
            float *kept = prefixes + item * 2 * part;
            memcpy(kept, d_keys, 4 * at_prefix * size);
            memcpy(kept + part, d_values, 4 * at_prefix * size);
            long to = ((own.first + at_prefix - own.prefix) * key_heads + key_head) * size;
            write_rows(d_keys + at_prefix * size, d_key + to, key_heads * size, own.keys - at_prefix, size);
            write_rows(d_values + at_prefix * size, d_value + to, key_heads * size, own.keys - at_prefix, size);
        }
        free(turned_keys), free(turned_values), free(paired_keys), free(changes), free(paired_weights);
        free(paired_changes), free(paired_queries), free(paired_outputs), free(scores), free(d_weights), free(found);
        free(d_keys), free(d_values);
    }
    for (long key_head = 0; key_head < key_heads; key_head++) {
        float *total = prefixes + key_head * 2 * part;
        for (long number = 1; number < documents; number++)
            for (long at = 0; at < 2 * part; at++)
                total[at] += prefixes[(number * key_heads + key_head) * 2 * part + at];
        write_rows(total, d_key + key_head * size, key_heads * size, shared, size);
        write_rows(total + part, d_value + key_head * size, key_heads * size, shared, size);
    }
    free(prefixes);
}

/* ---- the feed-forward block ---- */

/* A gated block's matrices; lows is (rows, 2 rank), b_gate and b_up (width, rank). On the way back also d_low (rows, rank)
 * and a_down (rank, width). Once paired, the adapters' are (rank / 2, width). */
typedef struct {
    const bf16 *gate, *up, *lows, *b_gate, *b_up, *d_low, *a_down;
    bf16 *inner, *d_gate, *d_up;
    long width, rank;
} Block;

INLINE void open_gate(const int m, const Block *block, long row, long at, __m512 gate[][VECTORS], __m512 up[][VECTORS]) {
    for (int i = 0; i < m; i++) {
        gate[i][0] = load(block->gate + (row + i) * block->width + at);
        up[i][0] = load(block->up + (row + i) * block->width + at);
    }
    const bf16 *low = block->lows + row * 2 * block->rank;
    multiply(m, 1, gate, low, 2 * block->rank, 2, block->b_gate + 2 * at, block->width, block->rank / 2);
    multiply(m, 1, up, low + block->rank, 2 * block->rank, 2, block->b_up + 2 * at, block->width, block->rank / 2);
}

INLINE void swiglu_rows(const int m, const Block *block, long row) {
    for (long at = 0; at < block->width; at += LANES) {
        __m512 gate[ROWS][VECTORS], up[ROWS][VECTORS];
        open_gate(m, block, row, at, gate, up);
        for (int i = 0; i < m; i++)
            store(
                block->inner + (row + i) * block->width + at,
                _mm512_mul_ps(_mm512_mul_ps(gate[i][0], sigmoid(gate[i][0])), up[i][0])
            );
    }
}

INLINE void swiglu_backward_rows(const int m, const Block *block, long row) {
    for (long at = 0; at < block->width; at += LANES) {
        __m512 gate[ROWS][VECTORS], up[ROWS][VECTORS], change[ROWS][VECTORS];
        open_gate(m, block, row, at, gate, up);
        for (int i = 0; i < m; i++)
            change[i][0] = load(block->inner + (row + i) * block->width + at);
        const bf16 *low = block->d_low + row * block->rank;
        multiply(m, 1, change, low, block->rank, 2, block->a_down + 2 * at, block->width, block->rank / 2);
        for (int i = 0; i < m; i++) {
            long place = (row + i) * block->width + at;
            __m512 open = sigmoid(gate[i][0]), active = _mm512_mul_ps(gate[i][0], open);
            /* silu'(x) = s(x) + x s(x) (1 - s(x)) */
            __m512 slope = _mm512_add_ps(open, _mm512_fnmadd_ps(active, open, active));
            store(block->inner + place, _mm512_mul_ps(active, up[i][0]));
            store(block->d_up + place, _mm512_mul_ps(change[i][0], active));
            store(block->d_gate + place, _mm512_mul_ps(_mm512_mul_ps(change[i][0], up[i][0]), slope));
        }
    }
}

INLINE void block_rows(const int m, const Block *block, long row) {
    if (block->a_down)
        swiglu_backward_rows(m, block, row);
    else
        swiglu_rows(m, block, row);
}

/* Both ways; the adapters' matrices come as they are and are paired here. */
static void run_block(Block block, long rows, int threads) {
    long width = block.width, rank = block.rank, bytes = 2 * rank * width;
    bf16 *gate = reserve(bytes), *up = reserve(bytes), *down = block.a_down ? reserve(bytes) : NULL;
    Rows gates = {block.b_gate, block.b_gate, 0, width, rank}, ups = {block.b_up, block.b_up, 0, width, rank};
    pack_turned(gate, &gates, rank, width);
    pack_turned(up, &ups, rank, width);
    if (down) {
        Rows downs = {block.a_down, block.a_down, 0, rank, width};
        pack_paired(down, &downs, width, rank);
    }
    block.b_gate = gate, block.b_up = up, block.a_down = down;
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row += ROWS) {
        if (rows - row >= ROWS)
            block_rows(ROWS, &block, row);
        else
            for (long own = row; own < rows; own++)
                block_rows(1, &block, own);
    }
    free(gate), free(up), free(down);
}

void swiglu(
    const bf16 *gate, const bf16 *up, const bf16 *lows, const bf16 *b_gate, const bf16 *b_up, bf16 *inner, long rows,
    long width, long rank, int threads
) {
    run_block((Block){gate, up, lows, b_gate, b_up, NULL, NULL, inner, NULL, NULL, width, rank}, rows, threads);
}

void swiglu_backward(
    const bf16 *gate, const bf16 *up, const bf16 *lows, const bf16 *b_gate, const bf16 *b_up, const bf16 *d_low,
    const bf16 *a_down, bf16 *inner, bf16 *d_gate, bf16 *d_up, long rows, long width, long rank, int threads
) {
    run_block((Block){gate, up, lows, b_gate, b_up, d_low, a_down, inner, d_gate, d_up, width, rank}, rows, threads);
}

/* ---- the head ---- */

void exponentiate(bf16 *tile, float *largest, float *sums, long rows, long labels, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long at = 0; at < labels; at += LANES) {
        __mmask16 some = (__mmask16)(labels - at >= LANES ? 0xffff : (1 << (labels - at)) - 1);
        __m512 most = _mm512_maskz_loadu_ps(some, largest + at), total = _mm512_maskz_loadu_ps(some, sums + at);
        for (long row = 0; row < rows; row++) {
            bf16 *own = tile + row * labels + at;
            __m512 logit = spread(_mm256_maskz_loadu_epi16(some, own));
            most = _mm512_max_ps(most, logit);
            __m256i weight = rounded(exponential(logit));
            total = _mm512_add_ps(total, spread(weight));
            _mm256_mask_storeu_epi16(own, some, weight);
        }
        _mm512_mask_storeu_ps(largest + at, some, most);
        _mm512_mask_storeu_ps(sums + at, some, total);
    }
}
