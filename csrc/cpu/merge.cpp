#include "../vocab_stats.h"

namespace bgkd {

void merge_tokens(const MergeArgs& args, int64_t begin, int64_t end) {
  const uint32_t features = args.params.features;
  const int64_t shard_size = num_rows(features) * args.num_tokens;
  for (int64_t i = begin; i < end; ++i) {
    if (args.labels.skipped(i)) {
      store_stats(TokenStats{}, args.global, args.num_tokens, i, features);
      continue;
    }
    TokenStats sum = neutral_stats();
    for (int64_t shard = 0; shard < args.num_shards; ++shard) {
      TokenStats part = neutral_stats();
      load_stats(part, args.partial + shard * shard_size, args.num_tokens, i, features);
      sum = merge(sum, part, args.params);
    }
    store_stats(finalize(sum, args.params), args.global, args.num_tokens, i, features);
  }
}

}  // namespace bgkd
