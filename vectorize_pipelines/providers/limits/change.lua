-- Disables keys for a reason, or enables them where the reason is empty. KEYS: as in acquire.lua. ARGV: salt, reason,
-- only (enable those that are disabled for this reason; empty: all), ids.
local prefix = string.sub(KEYS[1], 1, -5) -- without `salt`
local reason, only = ARGV[2], ARGV[3]
local salt = redis.call('GET', KEYS[1])
if salt and salt ~= ARGV[1] then return {'salt', salt} end
for i = 4, #ARGV do
  local id = ARGV[i]
  if reason ~= '' then
    redis.call('HSET', prefix .. 'disabled', id, reason)
  elseif only == '' or redis.call('HGET', prefix .. 'disabled', id) == only then
    for _, name in ipairs({'disabled', 'cooling', 'latest_limited', 'limited_in_a_row'}) do
      redis.call('HDEL', prefix .. name, id)
    end
  end
end
return {'done'}
