/* adam, dense
 * tensors: var float32, m float32, v float32, grad float32
 * scalars: 0 lr, 1 beta1, 2 beta2, 3 epsilon, 4 apply, 5 sub_1, 6 sub_3 */

static void rule_adam_derive(double *row)
{
    const double beta1 = row[1];
    const double sub_1 = 1.0 - beta1;
    row[5] = sub_1;
    const double beta2 = row[2];
    const double sub_3 = 1.0 - beta2;
    row[6] = sub_3;
}

static THALWEG_INLINE void rule_adam_range(int64_t length,
    float *restrict var_at,
    float *restrict m_at,
    float *restrict v_at,
    const float *restrict grad_at,
    const double *restrict row)
{
    const float lr = (float)row[0];
    const float epsilon = (float)row[3];
    const float sub_1 = (float)row[5];
    const float sub_3 = (float)row[6];
    for (int64_t i = 0; i < length; ++i) {
        const float var = var_at[i];
        const float m = m_at[i];
        const float v = v_at[i];
        const float grad = grad_at[i];
        // m_new = m + (grad - m) * (1 - beta1)
        const float sub = grad - m;
        const float mul = sub * sub_1;
        const float m_new = m + mul;
        // v_new = v + (grad * grad - v) * (1 - beta2)
        const float mul_1 = grad * grad;
        const float sub_2 = mul_1 - v;
        const float mul_2 = sub_2 * sub_3;
        const float v_new = v + mul_2;
        // var_new = var - lr * m_new / (torch.sqrt(v_new) + epsilon)
        const float mul_3 = lr * m_new;
        const float sqrt_ = sqrtf(v_new);
        const float add_2 = sqrt_ + epsilon;
        const float div = mul_3 / add_2;
        const float var_new = var - div;
        var_at[i] = var_new;
        m_at[i] = m_new;
        v_at[i] = v_new;
    }
}

static void rule_adam_span(int64_t num_items, const int64_t *items, void *const *pointers,
    const double *scalars, int64_t begin, int64_t end)
{
    int64_t position = 0;
    for (int64_t number = 0; number < num_items && position < end; ++number) {
        const int64_t *item = items + number * 5;
        const double *row = scalars + item[4] * 7;
        void *const *tensors = pointers + item[0] * 4;
        const int64_t length = item[3];
        int64_t first = thalweg_cut(begin - position, THALWEG_BLOCK, length);
        const int64_t last = thalweg_cut(end - position, THALWEG_BLOCK, length);
        position += length;
        if (first >= last || row[4] == 0.0) {
            continue;
        }
        const int64_t stop = last - first < THALWEG_LONG ? first : last - THALWEG_FETCH;
        for (; first < stop; first += THALWEG_BLOCK) {
            thalweg_prefetch(
                (float *)tensors[0] + item[1] + first + THALWEG_FETCH,
                THALWEG_BLOCK * (int64_t)sizeof(float));
            thalweg_prefetch(
                (float *)tensors[1] + item[1] + first + THALWEG_FETCH,
                THALWEG_BLOCK * (int64_t)sizeof(float));
            thalweg_prefetch(
                (float *)tensors[2] + item[1] + first + THALWEG_FETCH,
                THALWEG_BLOCK * (int64_t)sizeof(float));
            thalweg_prefetch(
                (float *)tensors[3] + item[2] + first + THALWEG_FETCH,
                THALWEG_BLOCK * (int64_t)sizeof(float));
            rule_adam_range(
                THALWEG_BLOCK,
                (float *)tensors[0] + item[1] + first,
                (float *)tensors[1] + item[1] + first,
                (float *)tensors[2] + item[1] + first,
                (float *)tensors[3] + item[2] + first,
                row);
        }
        rule_adam_range(
            last - first,
            (float *)tensors[0] + item[1] + first,
            (float *)tensors[1] + item[1] + first,
            (float *)tensors[2] + item[1] + first,
            (float *)tensors[3] + item[2] + first,
            row);
    }
}

void rule_adam(int64_t num_items, const int64_t *items, void *const *pointers,
    double *scalars, int64_t num_rows, int num_threads)
{
    for (int64_t number = 0; number < num_rows; ++number) {
        rule_adam_derive(scalars + number * 7);
    }
    int64_t total = 0;
    for (int64_t number = 0; number < num_items; ++number) {
        total += items[number * 5 + 3];
    }
    const int64_t elements = total;
    const int64_t parts = elements < THALWEG_SERIAL ? 1 : num_threads;
    if (parts <= 1) {
        rule_adam_span(num_items, items, pointers, scalars, 0, total);
    } else {
    #pragma omp parallel for schedule(static) num_threads((int)parts)
        for (int64_t part = 0; part < parts; ++part) {
            rule_adam_span(num_items, items, pointers, scalars,
                    total * part / parts, total * (part + 1) / parts);
        }
    }
}
