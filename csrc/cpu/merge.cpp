#include "../vocab_stats.h"

namespace bgkd {

void merge_tokens(const MergeArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    TokenStats global{};
    if (!args.labels.skipped(i)) {
      global = finalize(merge_parts(args.partial, args.num_shards, args.num_tokens, i, args.params),
                        args.params);
    }
    store_stats(global, args.global, args.num_tokens, i, args.params.features);
  }
}

}  // namespace bgkd
