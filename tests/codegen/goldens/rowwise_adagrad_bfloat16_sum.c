/* rowwise_adagrad, sum
 * tensors: var float32, accumulator float32, grad bfloat16
 * scalars: 0 lr, 1 row_length, 2 apply */

static void rule_rowwise_adagrad_derive(double *row)
{
    (void)row;
}

static void rule_rowwise_adagrad_range(int64_t length,
    float *restrict var_at,
    float *restrict accumulator_at,
    const thalweg_bfloat16 *restrict grad_at,
    const double *restrict row)
{
    const int64_t width = (int64_t)row[1];
    const float lr = (float)row[0];
    for (int64_t done = 0; done < length; done += width) {
        const float accumulator = accumulator_at[0];
        double mean_total = 0.0;
        for (int64_t chunk = 0; chunk < width; chunk += THALWEG_CHUNK) {
            const int64_t stop = thalweg_smaller(chunk + THALWEG_CHUNK, width);
            const int64_t used = thalweg_used_lanes(stop - chunk);
            double mean_lanes[THALWEG_LANES];
            for (int64_t lane = 0; lane < used; ++lane) {
                mean_lanes[lane] = 0.0;
            }
            for (int64_t base = chunk; base < stop; base += THALWEG_LANES) {
                const int64_t count = thalweg_smaller(THALWEG_LANES, stop - base);
                for (int64_t lane = 0; lane < count; ++lane) {
                    const int64_t i = base + lane;
                    const float grad = (float)thalweg_load_bfloat16(grad_at[i]);
                    // accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
                    const float mul = grad * grad;
                    mean_lanes[lane] += (double)mul;
                }
            }
            mean_total += thalweg_fold_sum(mean_lanes, used);
        }
        const float mean = (float)(mean_total / (double)width);
        // accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
        const float accumulator_new = accumulator + mean;
        // var_new = var - lr * grad * torch.rsqrt(accumulator_new)
        const float rsqrt = 1.0f / sqrtf(accumulator_new);
        for (int64_t i = 0; i < width; ++i) {
            const float var = var_at[i];
            const float grad = (float)thalweg_load_bfloat16(grad_at[i]);
            // var_new = var - lr * grad * torch.rsqrt(accumulator_new)
            const float mul_1 = lr * grad;
            const float mul_2 = mul_1 * rsqrt;
            const float var_new = var - mul_2;
            var_at[i] = var_new;
        }
        accumulator_at[0] = accumulator_new;
        var_at += width;
        accumulator_at += 1;
        grad_at += width;
    }
}

static void rule_rowwise_adagrad_sum(int64_t length, float *restrict sum,
    const thalweg_bfloat16 *gradient, const int64_t *sources, int64_t count)
{
    const thalweg_bfloat16 *restrict duplicate = gradient + sources[0] * length;
    for (int64_t i = 0; i < length; ++i) {
        sum[i] = (float)thalweg_load_bfloat16(duplicate[i]);
    }
    for (int64_t source = 1; source < count; ++source) {
        const thalweg_bfloat16 *restrict duplicate =
            gradient + sources[source] * length;
        for (int64_t i = 0; i < length; ++i) {
            sum[i] += (float)thalweg_load_bfloat16(duplicate[i]);
        }
    }
}

static void rule_rowwise_adagrad_summed(int64_t length,
    float *restrict var_at,
    float *restrict accumulator_at,
    const float *restrict grad_at,
    const double *restrict row)
{
    const int64_t width = (int64_t)row[1];
    const float lr = (float)row[0];
    for (int64_t done = 0; done < length; done += width) {
        const float accumulator = accumulator_at[0];
        double mean_total = 0.0;
        for (int64_t chunk = 0; chunk < width; chunk += THALWEG_CHUNK) {
            const int64_t stop = thalweg_smaller(chunk + THALWEG_CHUNK, width);
            const int64_t used = thalweg_used_lanes(stop - chunk);
            double mean_lanes[THALWEG_LANES];
            for (int64_t lane = 0; lane < used; ++lane) {
                mean_lanes[lane] = 0.0;
            }
            for (int64_t base = chunk; base < stop; base += THALWEG_LANES) {
                const int64_t count = thalweg_smaller(THALWEG_LANES, stop - base);
                for (int64_t lane = 0; lane < count; ++lane) {
                    const int64_t i = base + lane;
                    const float grad = grad_at[i];
                    // accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
                    const float mul = grad * grad;
                    mean_lanes[lane] += (double)mul;
                }
            }
            mean_total += thalweg_fold_sum(mean_lanes, used);
        }
        const float mean = (float)(mean_total / (double)width);
        // accumulator_new = accumulator + (grad * grad).mean(-1, keepdim=True)
        const float accumulator_new = accumulator + mean;
        // var_new = var - lr * grad * torch.rsqrt(accumulator_new)
        const float rsqrt = 1.0f / sqrtf(accumulator_new);
        for (int64_t i = 0; i < width; ++i) {
            const float var = var_at[i];
            const float grad = grad_at[i];
            // var_new = var - lr * grad * torch.rsqrt(accumulator_new)
            const float mul_1 = lr * grad;
            const float mul_2 = mul_1 * rsqrt;
            const float var_new = var - mul_2;
            var_at[i] = var_new;
        }
        accumulator_at[0] = accumulator_new;
        var_at += width;
        accumulator_at += 1;
        grad_at += width;
    }
}

static void rule_rowwise_adagrad_span(int64_t num_items, const int64_t *items, void *const *pointers,
    const double *scalars, int64_t begin, int64_t end,
    const int64_t *starts, const int64_t *sources)
{
    float *sum = NULL;
    int64_t room = 0;
    const int64_t ahead = begin < end ? thalweg_ahead(items[begin * 5 + 3] * (int64_t)sizeof(float)) : 0;
    for (int64_t number = begin; number < end; ++number) {
        if (number + ahead < end) {
            const int64_t *next = items + (number + ahead) * 5;
            const double *row = scalars + next[4] * 3;
            void *const *tensors = pointers + next[0] * 3;
            const int64_t width = (int64_t)row[1];
            thalweg_prefetch(
                (float *)tensors[0] + next[1] + 0,
                next[3] * (int64_t)sizeof(float));
            thalweg_prefetch(
                (float *)tensors[1] + thalweg_row(next[1] + 0, width),
                (int64_t)sizeof(float));
            thalweg_prefetch(
                (thalweg_bfloat16 *)tensors[2] + next[2] + sources[starts[number + ahead]] * next[3],
                next[3] * (int64_t)sizeof(thalweg_bfloat16));
        }
        const int64_t *item = items + number * 5;
        const double *row = scalars + item[4] * 3;
        void *const *tensors = pointers + item[0] * 3;
        const int64_t width = (int64_t)row[1];
        const int64_t length = item[3];
        if (row[2] == 0.0) {
            continue;
        }
        if (starts[number + 1] - starts[number] == 1) {
            rule_rowwise_adagrad_range(
                length,
                (float *)tensors[0] + item[1] + 0,
                (float *)tensors[1] + thalweg_row(item[1] + 0, width),
                (thalweg_bfloat16 *)tensors[2] + item[2] + sources[starts[number]] * length,
                row);
            continue;
        }
        if (room < length) {
            sum = thalweg_grow(sum, length * (int64_t)sizeof(float));
            room = length;
        }
        rule_rowwise_adagrad_sum(
            length,
            sum,
            (thalweg_bfloat16 *)tensors[2] + item[2],
            sources + starts[number],
            starts[number + 1] - starts[number]);
        rule_rowwise_adagrad_summed(
            length,
            (float *)tensors[0] + item[1] + 0,
            (float *)tensors[1] + thalweg_row(item[1] + 0, width),
            sum,
            row);
    }
    free(sum);
}

void rule_rowwise_adagrad(int64_t num_items, const int64_t *items, void *const *pointers,
    double *scalars, int64_t num_rows, int num_threads, const int64_t *starts, const int64_t *sources)
{
    for (int64_t number = 0; number < num_rows; ++number) {
        rule_rowwise_adagrad_derive(scalars + number * 3);
    }
    const int64_t total = num_items + starts[num_items] - starts[0];
    const int64_t elements = num_items ? total * items[3] : 0;
    const int64_t parts = elements < THALWEG_SERIAL ? 1 : num_threads;
    if (parts <= 1) {
        rule_rowwise_adagrad_span(num_items, items, pointers, scalars, 0, num_items, starts, sources);
    } else {
    #pragma omp parallel for schedule(static) num_threads((int)parts)
        for (int64_t part = 0; part < parts; ++part) {
            rule_rowwise_adagrad_span(num_items, items, pointers, scalars,
                    thalweg_find(starts, num_items, total * part / parts),
                        thalweg_find(starts, num_items, total * (part + 1) / parts),
                        starts, sources);
        }
    }
}
