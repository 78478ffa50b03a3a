-- Disables keys for a reason, or enables them where the reason is empty. ARGV: salt, prefix, reason, only (enable those
-- that are disabled for this reason; empty: all), ids. KEYS: 1 salt, 2 counter, 3 disabled keys.
local prefix, reason, only = ARGV[2], ARGV[3], ARGV[4]
local salt = redis.call('GET', KEYS[1])
if salt and salt ~= ARGV[1] then return {'salt', salt} end
for i = 5, #ARGV do
  if reason ~= '' then
    redis.call('HSET', KEYS[3], ARGV[i], reason)
  elseif only == '' or redis.call('HGET', KEYS[3], ARGV[i]) == only then
    redis.call('HDEL', KEYS[3], ARGV[i])
    redis.call('HDEL', prefix .. 'key:' .. ARGV[i], 'cooling', 'cooled', 'streak')
  end
end
return {'done'}
